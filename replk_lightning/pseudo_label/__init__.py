r"""Soft labels written offline by teachers, for images that no one has labelled.

Appendix A pre-trains RepLKNet-XL with soft labels of task-specific teachers. The same for your images:

```sh
python -m replk_lightning pseudo-label --teacher imagenet=replknet_31b@RepLKNet-31B_ImageNet-1K_224.pth \
  --images /data/photos --out labels --top-k 10       # torchrun or --rank/--world share the shards
```

A teacher is any classifier of timm or a checkpoint of `fit`; each labels a task. `labels/` holds Parquet: classes and
float16 probabilities, the rest as one remainder, which training spreads evenly over the classes not listed. People's
labels (`--labels TASK`: class folders, a label column) are kept and marked. The same command goes on after `kill -9`,
losing at most a shard; unreadable images are listed. With a ResNet-50 on one CPU thread reading and writing took 2.7 %
of the time.

```python
import lightning
from replk_lightning.data.multitask import Labelled, MultiTaskData, PseudoLabelled
from replk_lightning.tasks.multitask import MultiTaskClassify

task = MultiTaskClassify({"imagenet": 1000})  # RepLKNet-XL under the recipe xl_semi_supervised
sources = [Labelled("imagenet", "imagefolder:/data/imagenet"), PseudoLabelled("labels")]
data = MultiTaskData.for_recipe(task.recipe, sources, {"imagenet": "imagefolder:/data/imagenet"}, weights=[2, 1])
lightning.Trainer(max_epochs=task.recipe.epochs, devices=8).fit(task, data)
```
"""

from replk_lightning.pseudo_label.labelling import HumanLabels, PseudoLabelError, Summary, label
from replk_lightning.pseudo_label.teachers import Teacher, load_teacher

__all__ = ["HumanLabels", "PseudoLabelError", "Summary", "Teacher", "label", "load_teacher"]

r"""RepLKNet: the models, recipes, tasks and measurements of "Scaling Up Your Kernels to 31x31".

Importing this package registers its models with timm and does nothing else.

```python
import timm
import replk_lightning  # registers the models

net = timm.create_model("replknet_31b")  # also replknet_3, 7, 13, 25, 31l, xl
replk_lightning.load_official(net, "RepLKNet-31B_ImageNet-1K_224.pth")
net.reset_classifier(10)  # fine-tune on ten classes

small = timm.create_model("mobilenetv2_lk", kernel_size=13, small_kernel=3, shortcut=True)
maps = timm.create_model("replknet_31b", features_only=True)  # strides 4, 8, 16, 32

merged = timm.utils.reparameterize_model(net)  # small kernels into the large ones
fast = replk_lightning.deploy(net)  # and every BatchNorm folded: a new, equal model
```

`RepLKNet(kernel_sizes, depths, dims, small_kernel=5, dw_ratio=1.0, …)` is the class, its parameter names the official
release's; weights are found in any container (averages, DDP, Lightning's or timm's checkpoints). `output_stride` 8 or
16 turns strides into dilations, each coarse map contained in the finer one. `replk_lightning.measure` has parameters
and multiply-adds, effective receptive fields, shape bias and latency of any module or timm name.

`timm.create_model("replknet_31b", pretrained=True)` takes the release's weights as OpenMMLab serves them: tags `in1k`,
`in1k_384`, `in22k_ft_in1k` and `in22k_ft_in1k_384` of `replknet_31b`, `in22k_ft_in1k_384` of `replknet_31l`,
`meg73m_ft_in1k` of `replknet_xl`. With other `num_classes` the head is new, with other `in_chans` the stem adapted.

`save_pretrained(net, FOLDER)`, `from_pretrained(FOLDER)` and `push_to_hub(net, "OWNER/NAME")` keep every argument of
the net (kernel sizes too) beside its weights, in timm's form, and write a model card from the records of its runs.

# Training

A recipe (`replk_lightning.recipes`) says the task, the schedule, the resolution, and the data where they are not named;
every flag of Lightning's Trainer works:

```sh
python -m replk_lightning fit --model.model replknet_31b --model.recipe replknet_300ep \
  --data.name imagefolder:/data/imagenet --trainer.devices 8 --trainer.precision bf16-mixed
python -m replk_lightning fit --model.model replknet_31b --model.recipe upernet_ade20k_160k \
  --model.init RepLKNet-31B_ImageNet-1K_224.pth --data.name ade20k:/data/ADEChallengeData2016
```

`fit --ckpt_path last.ckpt` resumes: flags that are typed win and are named, or are refused. On a GPU this package's
nets are timed in both memory layouts before the first step, and train in the faster one, which checkpoints keep; in
Python it is Lightning's callback `replk_lightning.trainer.fastest_layout.FastestLayout`, and a net whose
`memory_format` is set keeps that. `deploy(net, images)` does likewise in inference.

# Looking at any net

```sh
python -m replk_lightning complexity --model replknet_31b                       # parameters and multiply-adds
python -m replk_lightning erf --model convnext_base --images /data/photos --out field
python -m replk_lightning shape-bias --model resnet50 --stimuli /data/cue-conflict
python -m replk_lightning export --model runs/fit/lightning_logs/version_0/checkpoints/last.ckpt --out net.onnx
```

A net is a name of timm's (`hf-hub:…` and `local-dir:…` too), `NAME@weights.pth`, or a checkpoint of `fit`, of an
ablation or of timm's train.py. How its pictures are prepared is printed, and random weights are called random.
`export` writes ONNX (`pip install "replk-lightning[onnx]"`) or TorchScript of the deployed net, with batch, height and
width free where the net allows, and runs the file at other batches and sizes before it keeps it.
"""

from importlib.metadata import PackageNotFoundError, version

from native.moved import keep_old_names
from replk_lightning import models
from replk_lightning.deploy import deploy
from replk_lightning.hub import from_pretrained, push_to_hub, save_pretrained
from replk_lightning.models.weights import load_official

keep_old_names(
    "replk_lightning",
    {
        "callbacks": "trainer.resume",
        "checkpointing": "trainer.checkpoint_io",
        "command_line": "arguments",
        "data.boxes": "data.detection",
        "data.memory": "data.tensor_images",
        "data.reading": "data.decoding",
        "data.soft_labels": "data.label_shards",
        "data.soft_targets": "data.targets",
        "files": "atomic",
        "findings": "predict.predictors",
        "measure.kernels": "measure.kernel_pictures",
        "models.checkpoints": "models.weights",
        "overlays": "predict.draw",
        "sync_batch_norm": "trainer.sync_batch_norm",
        "tasks.choose": "tasks.factory",
        "tasks.optimize": "tasks.optim",
    },
)

try:
    __version__ = version("replk-lightning")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0.1.0"

__all__ = [
    "__version__",
    "deploy",
    "from_pretrained",
    "load_official",
    "models",
    "push_to_hub",
    "save_pretrained",
]

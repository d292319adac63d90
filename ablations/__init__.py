r'''The paper, one short file per table or figure.

```sh
python -m ablations.run --list                                # what there is
python -m ablations.run guideline3 --dry-run                  # every run with its model, recipe and steps; does nothing
python -m ablations.run guideline2 --seeds 0 1 2              # three seeds, a few minutes each on two cores
python -m ablations.run guideline2 --until-decided --jobs 2   # seeds until its sentences are decided, two runs at once
python -m ablations.run table11 --rows k13 k3-dilated6        # some rows
python -m ablations.run table6 --timing                       # RepLKNet beside Swin, images/s on this machine
```

| scale | data | for |
| --- | --- | --- |
| `smoke` | a generated set | seconds; does the code path work? |
| `small` | scenes: blobs or digits over photographs | minutes a run; same kernels, five blocks, narrow nets |
| `paper` | ImageNet-1K | Appendix A as it stands |

Every run leaves one JSON record (what, with what, where, which commit); a record that exists is not run again. Tables
are rendered from the records and `ablations/paper.toml` alone. A claim is a margin, above zero where the paper's
sentence holds; it `holds` at a probability of 99.5 %, `fails` at 0.5 %, and is `undecided` between. A number older than
the model, recipe or data that it measures is marked †.

# All of it

```sh
nox -s reproduce_tables                                        # what is missing, the cheap first
nox -s reproduce_tables -- --scale smoke                       # the same path on tiny nets
nox -s reproduce_tables -- --only guideline2 table11 --seeds 0
nox -s reproduce_tables -- --until-decided --budget 10h        # what is undecided, the likely cheapest first
nox -s tables_are_current                                      # fails where a committed table is not its records'
```

`reproduce_tables` says beforehand what will run, how long it took elsewhere, and what is skipped and why. Ctrl-C (exit
status 130), SIGTERM (143), `kill -9` or a full disk lose no finished record; the same command goes on from the last
finished epoch, ends with the same weights as an unbroken run, and the record says in how many parts it was trained. Two
commands may share a results folder: each run is locked by one of them, and a lock dies with its process.

`--until-decided` trains only rows that an undecided sentence names, tells beforehand what it expects to spend and after
each seed what it knows; `--max-seeds` and `--budget` bound it. `--jobs N` trains N runs side by side, on a CPU each
with its share of the threads. `--submitit slurm_partition=gpu …` makes each run a job of SLURM
(`pip install -e ".[cluster]"`).

# On ImageNet, with 8 GPUs, with several nodes

ImageNet is gated on the Hugging Face hub: accept its licence and log in, or point to folders `train/CLASS/*.JPEG` and
`val/CLASS/*.JPEG`. `--data hf:NAME` takes any other image-classification set of the hub. Eight GPUs of one machine:

```sh
python -m ablations.run guideline2 --scale paper --data imagefolder:/data/imagenet --devices 8 --strategy ddp
```

Four nodes with torchrun (the same line on every node; under SLURM, `srun` it with one task a GPU instead):

```sh
torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \
  -m ablations.run table5 --scale paper --data imagefolder:/data/imagenet --devices 8 --num-nodes 4 --strategy ddp
```

The batch per GPU is the paper's; with another number of GPUs the learning rate is scaled linearly and the new one
printed. `--sync-bn` makes BatchNorm see the batches of all devices; metrics count every image once, however many share
them. `--strategy fsdp` serves rows that are neither averaged (EMA) nor carried over to another task.

# Receptive fields, shape bias, kernels

```sh
python -m ablations.run figure1                                # trains and measures Table 10's nets, draws them
python -m ablations.run figure1 --scale paper --data imagefolder:/data/imagenet --rows replknet31 \
  --init replknet31=RepLKNet-31B_ImageNet-1K_224.pth           # weights of your own: measured, not trained
```

Figure 1 shows the trained nets above and the same nets as they were initialised below: an untrained net's field is not
the trained one's. The field is that of the map before the last norm, as in the release. Shape bias (`figure5`) and
kernel pictures (`figure6`) are drawn likewise, on scenes: digits or solid blobs over and filled with photographs,
composed on the spot from packages that are installed anyway.

# The large kernels since

```sh
python -m ablations.run since --seeds 0                        # eight papers' layers and two extremes, at one cost
python -m ablations.run since_shape --seeds 0                  # the same rows' shape bias
python -m ablations.sweep --space spatial --trials 50          # over layers and kernel sizes
```

A layer is one file of `replk_lightning/models/spatial`; CONTRIBUTING.md shows how to add one.

# Segmentation and detection

Tables 3 to 5 and 7 to 9: UperNet and DeepLabv3+, FCOS and Cascade Mask R-CNN on any net of timm. A row is trained as a
classifier first and then carried over, as in the paper; at `small` both happen on scenes. `--from-scratch` does without
pre-training, in columns of their own. Cityscapes, ADE20K and COCO are read from their official folders.

```sh
python -m ablations.run guideline4 --seeds 0                   # what large kernels gain, in classification and beyond
python -m ablations.run distance --seeds 0                     # mIoU by a pixel's distance to the nearest outline
python -m ablations.run table8 --scale paper --rows replknet31b \
  --init replknet31b=RepLKNet-31B_ImageNet-1K_224.pth --transfer-data ade20k:/data/ADEChallengeData2016
python -m ablations.run table9 --scale paper --dry-run         # recipes and steps, without the data
```

# Add an ablation

A file in `ablations/tables` is an ablation; nothing has to be registered. This one is `ablations/tables/branches.py`:

```python
"""Which small kernel is best beside a 13×13 one: the paper's 3×3, or a larger one?"""

from ablations.spec import TOP1, Row, ablation, least
from replk_lightning.recipes import mobilenetv2_100ep


@ablation(recipe=mobilenetv2_100ep, metrics=(TOP1,))
def branches():
    """MobileNetV2, all 17 depthwise kernels 13×13, with three branches to merge."""
    for small in (3, 5, 7):
        yield Row(f"branch{small}", "mobilenetv2_lk", kernel_size=13, small_kernel=small)


@branches.claim("3×3 is the best of the three")
def small_is_best(top1):
    """Guideline 3 takes 3×3 and tries no other."""
    return least(top1["branch3"] - top1["branch5"], top1["branch3"] - top1["branch7"])
```

```sh
python -m ablations.run branches --scale smoke                 # seconds: does it work? then without --scale
```

It trains at every scale, goes on after Ctrl-C, and prints its table with a verdict; `--list` names it.
'''

"""Depthwise convolution for kernels from 3×3 to 127×127, compiled at run time (Sec. 3, Guideline 1).

```python
from native import DepthwiseConv2d, depthwise_conv2d, backends, why_not

layer = DepthwiseConv2d(384, 31)  # an nn.Conv2d with groups, same parameters and state_dict
backends()  # usable here, for example ('torch', 'reference', 'cpu')
why_not("nvrtc")  # one sentence, or None
```

`print(native.accelerate(model))` lets the operator compute any net's depthwise `nn.Conv2d` (timm's, yours) where it is
measured faster, and says for every other layer why not; parameters, hooks and optimizers stay, `native.restore(model)`
undoes it. Code that asks for RepLKNet's CUDA extension runs with `python -m native shim --write FOLDER` and FOLDER on
PYTHONPATH and in LARGE_KERNEL_CONV_IMPL. `native.DepthwiseConv1d(512, 31)` is the layer for sequences.

On a CPU "auto" times torch's own convolution beside the operator at the first call of a kind, forward and backward, and
takes it where the operator does not win (up to 3×3, and without gradients up to 7×7, unasked).
`python -m native plan` lists which way was measured fastest for each shape on this CPU and is kept; `--check` times
them again, `--remeasure` replaces what a busy moment spoilt.

`python -m native check` compares every usable backend with float64, `bench` times the operator beside torch's (`bench
--models` whole networks, `bench --nets` timm's nets accelerated, `bench --pair` two filters on one input), `report`
reads the CUDA kernels' machine code; the last needs no GPU. On a machine with one, `nox -s gpu` asks all that a GPU is
to answer, the most telling first (is it right? is RepLKNet-31B faster than Swin-B in bf16? the layer's times in both
layouts, tests, tables, compute-sanitizer where installed); it keeps each answer at once and goes on where it was
stopped. `nox -s gpu -- --dry-run` prints the plan.

Tensor cores serve fp16, bf16 and, after `torch.set_float32_matmul_precision("high")`, fp32 rounded to tf32, at stride
and dilation 1; all else takes a strict multiply-add kernel. Forward and both gradients work on planes (NCHW) and, with
channels in eights (of fp32 and tf32 in fours), on channels_last, and read and write each byte once where maps are not
tiled. What needs more shared memory in channels_last than a GPU has (31×31 on maps of 56×56 does on consumer GPUs), and
channels that no eights or fours share out, are copied to planes and back. In training a large and a small filter see
one input: `depthwise_conv2d_pair` may be one kernel that reads it once.
`auto` measures each layout by itself, and for large kernels, of any size, the frequency domain (`native.fft`) too. A
filter and what it reaches must fit a GPU's shared memory: 127×127 does everywhere from an A100 on, on consumer GPUs
since Ampere 101×101 (in 16 bits 127×127 on maps to 64×64), on Turing less; `why_not` names the limit. Maps that are
nearly of one size share a compiled kernel.
"""

from native.acceleration import accelerate, restore
from native.conv1d import DepthwiseConv1d
from native.dispatch import backends, why_not
from native.moved import keep_old_names
from native.ops import DepthwiseConv2d, depthwise_conv2d
from native.pair import depthwise_conv2d_pair

keep_old_names(
    "native",
    {
        "choose": "dispatch",
        "stock": "aten",
        "measured": "gpu_auto",
        "plans": "gpu_plans",
        "jit": "cpu_codegen",
        "plan": "autotune",
    },
)

__all__ = ["DepthwiseConv1d", "DepthwiseConv2d", "accelerate", "backends", "depthwise_conv2d", "depthwise_conv2d_pair",
           "restore", "why_not"]  # fmt: skip

"""``python -m native bench --nets``: timm's nets as they are beside the same nets accelerated, interleaved.

Forward (eval, inference mode) and training step (forward and backward in training mode), in both memory formats.
Rows go to ``results/native/nets-<machine>.csv``. Every number is a median; with one thread it is CPU time.
"""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from native import autotune, bench
from native.acceleration import Conv2d, accelerate
from native.layer_choice import choices
from native.timing import interleaved

NETS = ("convnext_tiny", "convnextv2_atto", "inception_next_tiny", "efficientnet_b0", "mobilenetv3_large_100",
        "repghostnet_100")  # fmt: skip
ROUNDS = 200  # at most: a few percent are to be seen
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def _call(net: nn.Module, images: Tensor, training: bool) -> Callable[[], object]:
    def forward() -> object:
        with torch.inference_mode():
            return net(images)

    def step() -> object:
        net.zero_grad()
        return net(images).square().mean().backward()

    return step if training else forward


def measure(name: str, layout: str, training: bool, batch: int, side: int, budget: float) -> dict[str, Any]:
    """One row of the table."""
    torch.manual_seed(0)
    stock = timm.create_model(name).to(memory_format=LAYOUTS[layout]).train(training)
    done = accelerate(stock, inplace=False)
    images = torch.randn(batch, 3, side, side).to(memory_format=LAYOUTS[layout])
    calls = {"stock": _call(stock, images, training), "accelerated": _call(done.model, images, training)}
    autotune.forget()
    calls["accelerated"]()  # decides
    seconds = interleaved(calls, budget, ROUNDS)
    taken = [layer.module for layer in done.layers if isinstance(layer.module, Conv2d)]
    row: dict[str, Any] = {"net": name, "layout": layout, "pass": bench.PASSES[training], "batch": batch, "side": side}
    row |= {"depthwise layers": len(done.layers), "by the operator": sum(True in choices(m) for m in taken)}
    row |= {f"{way} ms": round(1e3 * seconds[way], 3) for way in calls}
    row["× stock"] = round(seconds["stock"] / seconds["accelerated"], 3)
    return row


def main(arguments: list[str]) -> int:
    """Run the bench; the exit status."""
    parser = argparse.ArgumentParser("python -m native bench --nets", description=__doc__)
    parser.add_argument("--names", nargs="+", default=NETS, metavar="NET", help="timm's names")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=224, help="pixels of the square pictures (default 224)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=20.0, help="spent on a net, layout and pass")
    parser.add_argument("--results", type=Path, default=Path("results"), help="writes to RESULTS/native")
    options = parser.parse_args(arguments)
    if min(options.threads, options.batch, options.side) < 1:
        parser.error("--threads, --batch and --side are 1 or more")
    if unknown := [name for name in options.names if not timm.is_model(name)]:
        parser.error(f"timm has no model {unknown[0]!r}: timm.list_models() names them")
    torch.set_num_threads(options.threads)
    rows = []
    for name, layout, training in itertools.product(options.names, LAYOUTS, (False, True)):
        rows.append(measure(name, layout, training, options.batch, options.side, options.seconds))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    path = options.results / "native" / f"nets-{bench.stem()}.csv"
    bench.write_table(rows, path)
    worst = min(rows, key=lambda row: row["× stock"])
    print(f"least: {worst['× stock']}× stock, {worst['net']}, {worst['layout']}, {worst['pass']}; wrote {path}")
    return 0

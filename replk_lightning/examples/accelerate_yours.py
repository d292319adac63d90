"""python -m replk_lightning.examples.accelerate_yours my_file.MyNet: what native.accelerate gives your net, measured.

The net is a function or class that makes it, by its dotted name, or a name of timm's. The net as it is and an
accelerated copy take turns, so that a busy machine slows both; the numbers are medians.
"""

import pydoc
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import native
from native.timing import interleaved
from replk_lightning.arguments import OneLineErrors, positive
from replk_lightning.models import ModelError, create_model


def step(net: nn.Module, images: Tensor, training: bool) -> None:
    """A forward pass in eval mode, or a forward and backward pass in training mode."""
    net.train(training)
    with torch.set_grad_enabled(training):
        loss = net(images).square().mean()
    if training:
        loss.backward()


def main(argv: list[str] | None = None) -> int:
    """Print the layers and the times; a wrong argument gives one sentence and 2."""
    p = OneLineErrors(prog="accelerate_yours", description=__doc__)
    p.add_argument("net", nargs="?", default="inception_next_tiny", help="package.function, or a name of timm's")
    p.add_argument("--size", type=positive, default=224, help="side of the pictures in pixels (default: 224)")
    p.add_argument("--batch-size", type=positive, default=4)
    p.add_argument("--seconds", type=positive, default=10, help="for each comparison (default: 10)")
    arguments = p.parse_args(argv)
    make = pydoc.locate(arguments.net)
    try:
        net = make() if callable(make) else create_model(arguments.net)
    except ModelError as error:
        print(f"accelerate_yours: {error}", file=sys.stderr)
        return 2
    images = torch.randn(arguments.batch_size, 3, arguments.size, arguments.size)
    accelerated = native.accelerate(net, inplace=False)
    nets = {"as it is": net, "accelerated": accelerated.model}
    for name, training in (("forward", False), ("training step", True)):
        calls: dict[str, Callable[[], object]] = {
            how: partial(step, each, images, training) for how, each in nets.items()
        }
        times = interleaved(calls, arguments.seconds)
        said = ", ".join(f"{how} {1e3 * seconds:.1f} ms" for how, seconds in times.items())
        print(f"{name}: {said}, {times['as it is'] / times['accelerated']:.2f} times as fast")
    print(accelerated)
    return 0


if __name__ == "__main__":
    sys.exit(main())

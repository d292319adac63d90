"""In which memory layout a net of this package is faster, as measured: both take turns, and the rule's is hard to beat.

    net.memory_format = fastest_layout(net, images)

`replk_lightning.deploy(net, images)` and, in training on GPUs, `replk_lightning.trainer.fastest_layout` ask it.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from native.copying import copied
from replk_lightning.models.classifier import classifiers
from replk_lightning.models.layout import LAYOUTS, fast_layout
from replk_lightning.models.rewriting import HOOKS, plain_state, unwatched

Clock = Callable[[], float]
Key = TypeVar("Key")

ROUNDS = 8  # measured ones; one before them compiles and warms up
MARGIN = 0.97  # the other layout has to take less than this part of the rule's time,
OFTEN = 0.75  # in at least this part of the rounds: within the noise the rule holds


def fastest_layout(
    net: nn.Module,
    images: Tensor,
    training: bool = False,
    autocast: torch.dtype | None = None,
    clock: Clock = time.perf_counter,
) -> torch.memory_format:
    """The layout in which the nets of this package in `net` compute `images` faster, on the device of both.

    The layout of the rule (`replk_lightning.models.layout.fast_layout`) stays unless the other one is faster by more
    than 3 % in three rounds of four. A copy is timed, eager and without hooks, in inference with weights in the layout:
    the net, its `memory_format` among it, its gradients and the random generators stay as they are.

    Args:
        net: A net of this package, or a module around some; whatever `memory_format` they have does not count.
        images: (N, C, H, W) as the net gets them, in the dtype and number that will be computed; their values and
            their own layout do not matter.
        training: Time forward and backward with all modules in the modes that they are in, not forward in eval mode.
        autocast: The dtype of autocast within which the net will compute; None without autocast, whatever the process
            has set.
        clock: Gives seconds; read when the device has finished.

    Returns:
        torch.channels_last or torch.contiguous_format.

    Raises:
        ValueError: There is no net of this package in `net`.
    """
    return LAYOUTS[faster(layout_seconds(net, images, training, autocast, clock))]


@plain_state()
def layout_seconds(
    net: nn.Module,
    images: Tensor,
    training: bool = False,
    autocast: torch.dtype | None = None,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each round in each of LAYOUTS, the rule's first; arguments and errors as of `fastest_layout`."""
    if not classifiers(net):
        raise ValueError(f"{type(net).__name__} holds no net of this package, whose layout could be chosen")
    device, images = images.device, images.detach().clone()
    if training:  # weights stay as they lie
        copies = dict.fromkeys(LAYOUTS, _copy(net))
    else:  # they lie as `deploy` would lay them
        copies = {name: _copy(net).eval().to(memory_format=layout) for name, layout in LAYOUTS.items()}
    mixed = partial(torch.autocast, device.type, autocast, enabled=autocast is not None)

    def step(layout: str) -> None:
        copy = copies[layout]
        for each in classifiers(copy).values():
            each.layout = layout
        with torch.set_grad_enabled(training):
            with mixed():
                outputs = copy(images)
            _backward(outputs)
        copy.zero_grad()
        torch.clear_autocast_cache()  # within an autocast of the caller it would keep weights of a freed graph

    with mixed():
        rule = fast_layout(images) or torch.contiguous_format
    order = sorted(LAYOUTS, key=lambda name: LAYOUTS[name] is not rule)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        return turns({layout: partial(step, layout) for layout in order}, ROUNDS, device, clock)


def _copy(net: nn.Module) -> nn.Module:
    """One that nobody watches."""
    hooks = (hook for each in net.modules() for kind in HOOKS for hook in getattr(each, kind).values())
    return unwatched(copied(net, hooks))


def _backward(outputs: object) -> None:
    learning = [each for each in tree_leaves(outputs) if isinstance(each, Tensor) and each.requires_grad]
    if learning:  # not in inference, nor of a frozen net
        torch.autograd.backward([each.float().square().mean() for each in learning])


def faster(seconds: Mapping[str, list[float]]) -> str:
    """The second of two names if it is faster by MARGIN as often as OFTEN says, else the first."""
    (rule, its_own), (other, others) = seconds.items()
    wins = sum(new < MARGIN * old for old, new in zip(its_own, others, strict=True))
    return other if wins >= OFTEN * len(others) else rule


def turns(
    steps: Mapping[Key, Callable[[], object]], rounds: int, device: torch.device, clock: Clock
) -> dict[Key, list[float]]:
    """Seconds of each step in each round, the steps taking turns after one unmeasured round."""
    seconds: dict[Key, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            elapsed = _seconds(step, device, clock)
            if turn > 0:
                seconds[name].append(elapsed)
    return seconds


def _seconds(step: Callable[[], object], device: torch.device, clock: Clock) -> float:
    _synchronize(device)
    start = clock()
    step()
    _synchronize(device)
    return clock() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

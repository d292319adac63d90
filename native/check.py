"""``python -m native check``: every usable backend against float64, on this machine; bounds are `native.accuracy`'s."""

import argparse

from native import dispatch
from native.accuracy import NUMBERS, Case, compare

ON_TENSOR_CORES = ("nvrtc", "measured", "emulated")  # backends that know tf32

CASES = (
    Case((16, 16), (31, 31), batch=16),
    Case((32, 32), (13, 13), batch=5),
    Case((64, 64), (31, 31), batch=8, channels=1),
    Case((56, 56), (31, 31), batch=2),
    Case((28, 28), (29, 29)),
    Case((14, 14), (27, 27), batch=33, channels=1),
    Case((7, 7), (13, 13), batch=17),
    Case((9, 13), (3, 3)),
    Case((20, 70), (4, 9), padding=(0, 7)),
    Case((14, 28), (51, 5)),
    Case((14, 28), (5, 51), bias=False),
    Case((1, 1), (1, 1), batch=1),
    Case((11, 70), (51, 51), batch=1),
    Case((12, 12), (3, 2), padding=(3, 2)),
    Case((33, 21), (7, 7), stride=(2, 2)),
    Case((15, 22), (5, 3), dilation=(2, 3)),
    Case((19, 18), (3, 5), stride=(2, 1), dilation=(1, 3), bias=False),
    Case((40, 33), (63, 63), batch=1, channels=1),
    Case((40, 33), (101, 101), batch=1, channels=1),
    Case((9, 60), (5, 127), batch=1, channels=1),
    Case((28, 60), (5, 5), batch=2, channels=17),  # enough channels for a CPU's vectors
    Case((98, 99), (33, 32), batch=1, channels=1, stride=(1, 2), padding=(1, 0), dilation=(3, 3), bias=False),
    Case((14, 14), (13, 13), batch=5, channels=16, last=True),
    Case((7, 7), (13, 13), batch=17, channels=8, last=True),
    Case((20, 70), (4, 9), channels=24, padding=(0, 7), bias=False, last=True),
    Case((28, 28), (29, 29), channels=8, last=True),
    Case((1, 3), (3, 5), batch=2, channels=8, padding=(3, 4), last=True),
    Case((33, 21), (7, 7), channels=8, stride=(2, 2), last=True),
    Case((12, 12), (5, 5), channels=12, last=True),
)


def _numbers(backend: str) -> list[str]:
    """The kinds of `NUMBERS` to check; the reference sums in the operands' own dtype, which is no match for torch's."""
    if backend == "reference":
        return ["float32"]
    return [name for name in NUMBERS if name != "tf32" or backend in ON_TENSOR_CORES]


def main(argv: list[str]) -> int:
    """Print a line per failure and a summary per backend and dtype; 0 if all hold."""
    parser = argparse.ArgumentParser(prog="python -m native check", description=__doc__)
    parser.add_argument(
        "--backend", action="append", choices=[*dispatch.MODULES], help="only these (default: every usable one)"
    )
    options = parser.parse_args(argv)
    failures = 0
    for backend in options.backend or [name for name in dispatch.backends() if name != "torch"]:
        if why := dispatch.why_not(backend):
            print(f"{backend}: {why}")
            failures += 1
            continue
        for number in _numbers(backend):
            failures += _check(backend, number, "cuda" if backend in ("nvrtc", "measured") else "cpu")
    return int(failures > 0)


def _check(backend: str, number: str, device: str) -> int:
    """Print what one backend does to all cases in one kind of number; how many results are wrong."""
    worst, wrong = 0.0, 0
    for case in CASES:
        for result in compare(backend, case, number, device):
            worst = max(worst, result.error)
            if not result.holds:
                wrong += 1
                print(f"  {result.function} {case}: error {result.error:.2e}, torch's {result.torch_error:.2e}")
    print(f"{backend} on {device}, {number}: {len(CASES)} cases, {wrong} wrong, largest error {worst:.1e}", flush=True)
    return wrong

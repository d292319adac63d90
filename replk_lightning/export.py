"""Nets as files that other programs run: ONNX, and TorchScript by trace; each is compared with the net before it stays.

Which axes of the pictures a file leaves free is found by running it: exporters and traces may keep a size as a constant
and say nothing. The bound is a ratio, as everywhere here: a file's distance from the net in float64 may be twice that
of torch in float32 (plus some units in the last place, where torch happens to be nearly exact).
"""

import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from native.accuracy import UNIT, relative_error
from native.copying import copied
from replk_lightning.models import ModelError
from replk_lightning.models.rewriting import plain_state

AXES = {"batch": 0, "height": 2, "width": 3}
FREE = (tuple(AXES), ("batch",), ())
"""What a file may leave open, the most first."""

TIMES, MORE = 2, 4 * UNIT[torch.float32]
"""A file's error may be so many times torch's, and so much more."""

NEEDED = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUT, ABOUT = "images", "logits", "about"
"""Names in the files: of what goes in and comes out, and of the JSON that says whose net it is."""

Run = Callable[[Tensor], Tensor]


class ExportError(ModelError):
    """A net cannot be written, or the file would not compute what the net does; the message is one sentence."""


class Reference(NamedTuple):
    """Pictures (N, C, H, W), what the net makes of them in float64, and how far torch's float32 is from that."""

    images: Tensor
    exact: Tensor
    torch_error: float


class Compared(NamedTuple):
    """Pictures' shape, and the errors of the file and of torch, relative to float64."""

    shape: tuple[int, ...]
    error: float
    torch_error: float

    @property
    def ratio(self) -> float:
        """The file's error over torch's."""
        return self.error / max(self.torch_error, 1e-30)

    @property
    def holds(self) -> bool:
        """Whether the bound holds; NaN never does."""
        return self.error <= TIMES * self.torch_error + MORE


class Exported(NamedTuple):
    """What was written: the axes that are free, why no more of them are, and every comparison."""

    free: tuple[str, ...]
    why_not: str | None
    compared: list[Compared]


class MainLogits(nn.Module):
    """A segmenter that gives its logits alone."""

    def __init__(self, segmenter: nn.Module) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) → (N, classes, H, W)."""
        logits: Tensor = self.segmenter(images).main
        return logits


def missing() -> list[str]:
    """Packages that writing ONNX needs and that are not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


@plain_state()
def export(
    net: nn.Module,
    path: Path,
    size: tuple[int, int],
    *,
    in_chans: int = 3,
    form: nn.Module | None = None,
    about: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a net in eval mode, on the CPU and in float32, to `path`.

    Args:
        net: pictures (N, in_chans, H, W) → one tensor; what the file is compared with.
        path: ends with .onnx, or .pt for TorchScript; replaced in one step, and only by a file that was compared.
        size: H and W of the pictures to export with. The batch is 2, for exporters take 1 for a constant.
        form: the net to write, if that is another equal one, such as `deploy(net)`.
        about: kept in the file as JSON: ONNX's metadata `about`, TorchScript's extra file `about`.

    Raises:
        ExportError: the net does not take such pictures, cannot be exported, or the file gives something else.
        OSError: `path` cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder, _quiet():
        references = _references(net, in_chans, size)
        write = _write_onnx if path.suffix == ".onnx" else _write_torchscript
        file = Path(folder, path.name)
        found = _freest(lambda free: write(form or net, references[0].images, free, file, about or {}), references)
        for each in Path(folder).iterdir():  # above 2 GB, ONNX keeps its numbers in a file beside
            os.replace(each, path.parent / each.name)
    return found


def _references(net: nn.Module, in_chans: int, size: tuple[int, int]) -> list[Reference]:
    """Of pictures of `size` first, then of those of other batches and sizes that the net takes."""
    height, width = size
    generator = torch.Generator().manual_seed(0)
    exact_net = copied(net).double()
    found: list[Reference] = []
    sizes = ((2, *size), (1, *size), (3, *size), (2, height + 32, width + 64), (1, height + 13, width + 7))
    for batch, *sides in sizes:
        images = torch.randn(batch, in_chans, *sides, generator=generator)
        try:
            exact, result = exact_net(images.double()), net(images)
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            if not found:
                reason = _reason(error)
                raise ExportError(f"the net fails on pictures of {height}×{width} pixels: {reason}.") from error
            continue
        if not isinstance(exact, Tensor):
            raise ExportError(f"the net gives a {type(exact).__name__}, and only one tensor can be written.")
        if not exact.isfinite().all() or not exact.any():
            raise ExportError("the net gives nothing but zeros, or NaN, with which no file can be compared.")
        found.append(Reference(images, exact, relative_error(result, exact)))
    return found


def _freest(write: Callable[[tuple[str, ...]], Run], references: Sequence[Reference]) -> Exported:
    """What `write` gives with the most axes free that its file keeps free; raises ExportError where none does."""
    why_not: str | None = None
    base = references[0].images.shape
    for free in FREE:
        covered = [each for each in references if _covers(free, base, each.images.shape)]
        if "height" in free and all(each.images.shape[2:] == base[2:] for each in references):
            why_not = "the net itself takes no other size"
            continue
        try:
            run = write(free)
            compared = [_compare(run, each) for each in covered]
        except OSError:
            raise
        except Exception as error:  # exporters and runtimes raise whatever they meet
            why_not = why_not or _reason(error)
            continue
        worst = max(compared, key=lambda each: (not each.holds, each.ratio))
        if worst.holds:
            return Exported(free, why_not, compared)
        shape = "×".join(map(str, worst.shape))
        why_not = (
            why_not or f"for pictures {shape} the file is off by {worst.error:.1e}, torch by {worst.torch_error:.1e}"
        )
    raise ExportError(f"the net cannot be exported: {why_not}.")


def _covers(free: tuple[str, ...], base: Sequence[int], shape: Sequence[int]) -> bool:
    axes = [AXES[name] for name in free]
    return all(one == other or axis in axes for axis, (one, other) in enumerate(zip(base, shape, strict=True)))


def _compare(run: Run, reference: Reference) -> Compared:
    shape, result = tuple(reference.images.shape), run(reference.images)
    if result.shape != reference.exact.shape:
        raise ExportError(
            f"for pictures {shape} the file gives {tuple(result.shape)}, not {tuple(reference.exact.shape)}"
        )
    return Compared(shape, relative_error(result, reference.exact), reference.torch_error)


def _write_onnx(net: nn.Module, images: Tensor, free: tuple[str, ...], file: Path, about: Mapping[str, Any]) -> Run:
    import onnxruntime

    hints = {AXES[name]: torch.export.Dim.DYNAMIC for name in free}
    program = torch.export.export(net, (images,), dynamic_shapes=(hints,) if hints else None)
    names: Any = ({AXES[name]: name for name in free},) if free else None
    onnx = torch.onnx.export(program, verbose=False, input_names=[INPUT], output_names=[OUTPUT], dynamic_shapes=names)
    assert onnx is not None  # so it is for the older exporter only
    onnx.model.metadata_props[ABOUT] = json.dumps(about)
    onnx.save(file)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong comes as an exception too
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda pictures: torch.from_numpy(session.run([OUTPUT], {INPUT: pictures.numpy()})[0])


def _write_torchscript(
    net: nn.Module, images: Tensor, free: tuple[str, ...], file: Path, about: Mapping[str, Any]
) -> Run:
    if not file.exists():  # a trace is the same whatever is to be free
        traced = torch.jit.trace(net, images, check_trace=False)
        torch.jit.save(traced, file, _extra_files={ABOUT: json.dumps(about)})
    loaded: Run = torch.jit.load(file)
    return loaded


def _reason(error: Exception) -> str:
    """An error's line that says what happened: TorchScript's last one, else the first."""
    lines = [line.strip().rstrip(".:") for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1] if "TorchScript interpreter" in lines[0] else lines[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of constants and of old ways, for what they warn of is looked at."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)

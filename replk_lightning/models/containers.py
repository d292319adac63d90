"""Files of weights: what is read from them, and where in them a net's parameters lie.

Training scripts, Lightning, and the wrappers of torch (DistributedDataParallel, AveragedModel, torch.compile) each put
parameters elsewhere and under longer names. They are found by what they hold, not by who wrote them.
"""

import argparse
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

_AVERAGE = re.compile(r"(^|_)(ema|averaged?|swa)(_|$)")
_CONTAINERS = ("model", "state_dict", "module")
_WRAPPERS = re.compile(r"^((module|model|backbone|_orig_mod)\.)+")


class UnreadableError(ValueError):
    """A file is no checkpoint that can be read safely; the message is one sentence."""


def read(path: Path) -> Mapping[str, Any]:
    """What a `.safetensors` file or one of `torch.save` holds, on the CPU; only plain values are unpickled.

    Raises UnreadableError, and FileNotFoundError.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    with torch.serialization.safe_globals([argparse.Namespace, *_numpy_globals()]):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as error:  # whatever the unpickler makes of a web page saved under this name
            raise UnreadableError(f"{path} cannot be read as a checkpoint of tensors{_why(path)}") from error
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise UnreadableError(f"{path} holds a {type(content).__name__}: save a state_dict instead")
    return content


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise UnreadableError(f"{path} cannot be read as a checkpoint of tensors: download it again") from error


def _numpy_globals() -> list[Any]:
    """What numpy's numbers and arrays are pickled with, under the names of its versions 1 and 2; no objects."""
    scalar: Any = np.float64(0).__reduce__()[0]
    array: Any = np.zeros(0).__reduce__()[0]
    names = [(f, f"numpy.{core}.multiarray.{f.__name__}") for f in (scalar, array) for core in ("core", "_core")]
    return [*names, np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in "?bhilqBHILQefdgFDGSU"}]


def _why(path: Path) -> str:
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # not even a pickle
        found = []
    if found:
        names = ", ".join(found[:3]) + (f" and {len(found) - 3} more kinds" if len(found) > 3 else "")
        return f", for it also holds {names}: save its state_dict alone, where it was written"
    return ": download it again or save its state_dict"


def entries(content: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """A net's parameters in a file.

    Args:
        content: What the file holds: parameters by name, or mappings of them at any depth.
        own: The names that the net has for its parameters, in its order.

    Of all mappings in the file, those are looked at that hold many of the net's names, behind one prefix if need be;
    an average of the weights comes first, then what training scripts call the model, then the order of the file.
    """
    found = [(where, _unwrapped(mapping, own)) for where, mapping in _mappings(content)]
    held = [sum(name in state for name in own) for _, state in found]
    fitting = [each for each, count in zip(found, held, strict=True) if 2 * count >= max(held)]
    return min(fitting, key=lambda each: _rank(each[0]))[1] if fitting else dict(content)


def _mappings(content: Mapping[Any, Any], where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every mapping of names that holds a tensor, and the keys that lead to it."""
    if not all(isinstance(key, str) for key in content):
        return
    if any(isinstance(value, Tensor) for value in content.values()):
        yield where, content
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _mappings(value, (*where, key))


def _rank(where: tuple[str, ...]) -> tuple[bool, int]:
    known = [_CONTAINERS.index(key) for key in where if key in _CONTAINERS]
    return not any(_AVERAGE.search(key) for key in where), min(known, default=len(_CONTAINERS))


def _unwrapped(mapping: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """Entries without the names of what the net was wrapped in, nor an average's count."""
    prefix = max(_prefixes(mapping, own), key=lambda each: sum(each + name in mapping for name in own))
    state = {}
    for key, value in mapping.items():
        name = key.removeprefix(prefix)
        state[name if name in own else _WRAPPERS.sub("", name)] = value
    return {key: value for key, value in state.items() if key != "n_averaged" or key in own}


def _prefixes(mapping: Mapping[str, Any], own: Collection[str]) -> list[str]:
    """What stands before the first of the net's names that the mapping knows; first of all nothing."""
    for name in own:
        if found := [key.removesuffix(name) for key in mapping if key.endswith(f".{name}")]:
            return ["", *found]
    return [""]

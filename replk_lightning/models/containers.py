"""Files of weights: what is read from them, and where in them a net's parameters lie.

Training scripts, Lightning, and the wrappers of torch (DistributedDataParallel, AveragedModel, torch.compile) each put
parameters elsewhere and under longer names. They are found by what they hold, not by who wrote them.
"""

import argparse
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

_AVERAGE = re.compile(r"(^|_)(ema|averaged?|swa)(_|$)")
_SHARD = re.compile(r"-\d+-of-\d+\.|\.index\.json$")
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstandard"}
_CONTAINERS = ("model", "state_dict", "module")
_INSIDE = re.compile(r"(?<![^.])(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
"""What torch's wrappers of a net's parts put into the names of their parameters."""
_WRAPPERS = re.compile(r"^((module|model|backbone|_orig_mod)\.)+")


class UnreadableError(ValueError):
    """A file is no checkpoint that can be read safely; the message is one sentence."""


def read(path: Path) -> Mapping[str, Any]:
    """What a safetensors file, whatever its name, or one of `torch.save` holds, on the CPU.

    Only plain values are unpickled.

    Raises UnreadableError, and FileNotFoundError.
    """
    if path.is_dir() or (path.exists() and _SHARD.search(path.name)):
        raise UnreadableError(f"{path} is of a checkpoint in several files: save its state_dict into one")
    if _is_safetensors(path):
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


def _is_safetensors(path: Path) -> bool:
    """By the name, or by the header that the format begins with: eight bytes of length, and JSON."""
    if path.suffix == ".safetensors":
        return True
    with suppress(OSError), path.open("rb") as file:
        return file.read(9)[8:] == b"{"
    return False


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
    with suppress(OSError), path.open("rb") as file:
        start = file.read(5)
        if packed := next((name for magic, name in _PACKED.items() if start.startswith(magic)), None):
            return f", for {packed} has packed it: unpack it first"
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
    return not _is_average(where), min(known, default=len(_CONTAINERS))


def _is_average(where: Iterable[str]) -> bool:
    return any(_AVERAGE.search(key) for key in where)


def _unwrapped(mapping: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """Entries without the names of what the net was wrapped in.

    What lies outside the net is left out, as an average's count or a loss's weights, but for a head beside a backbone.
    Of several nets side by side the average is taken, else the first, and the others' entries keep their names.
    """
    plain = {key if key in own else _INSIDE.sub("", key): value for key, value in mapping.items()}
    prefixes = _prefixes(plain, own)
    held = {prefix: sum(prefix + name in plain for name in own) for prefix in prefixes}
    most = max(held.values())
    prefix = max(prefixes, key=lambda each: (2 * held[each] >= most, _is_average(each.split(".")), held[each]))
    inside = {key.removeprefix(prefix): value for key, value in plain.items() if key.startswith(prefix)}
    state = {name if name in own else _WRAPPERS.sub("", name): value for name, value in inside.items()}
    state |= {name: value for name, value in inside.items() if name in own}  # before a namesake in a wrapper
    parts = {name.partition(".")[0] for name in own}
    for key in (key for key in plain if not key.startswith(prefix)):
        name = _WRAPPERS.sub("", key)
        if name not in state and name.partition(".")[0] in parts:
            state[name] = plain[key]
        elif not _is_average(prefix.split(".")) and key.startswith(tuple(each for each in prefixes if each)):
            state[key] = plain[key]
    return {key: value for key, value in state.items() if key != "n_averaged" or key in own}


def _prefixes(mapping: Mapping[str, Any], own: Collection[str]) -> list[str]:
    """What stands before the first of the net's names that the mapping knows; first of all nothing."""
    for name in own:
        if found := [key.removesuffix(name) for key in mapping if key.endswith(f".{name}")]:
            return ["", *found]
    return [""]

"""Checkpoints of RepLKNet from elsewhere: their names for parameters, their forms, and one clear error.

Seen in the wild: flat dictionaries (the releases), a training run's ``{"model", "optimizer", "args", "model_ema"}``,
ImageNet-22K heads (``head.cls_22k.*``), and OpenMMLab's names (``backbone.*``, ``head.fc.*``, ``stages.3.norm.*``).
What lies around the parameters is `containers`' business.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from timm.models import load_checkpoint
from timm.models._features import FeatureGetterNet
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from native.copying import copied
from replk_lightning.models.classifier import Classifier
from replk_lightning.models.containers import UnreadableError, entries, read

_FLATTENED = re.compile(r"^(\w+?)_(\d+)\.")
_COMPUTED = re.compile(r"\.parametrizations\.|\.(weight|bias)_(orig|mask|g|v)$")
_OPTIONAL = re.compile(r"num_batches_tracked$|^stages\.\d+\.norm\.")
_ADAPTED = re.compile(r"^head\.|^stem\.(0\.)?conv\.weight$")
"""What timm drops or adapts for other classes and other channels."""
_MOST_NAMED = 10


class CheckpointError(ValueError):
    """A file that does not hold the parameters of the model; the model was left as it was.

    Attributes:
        missing: Parameters of the model that the file lacks.
        unexpected: Entries of the file that the model lacks.
        misshaped: Entries whose shapes differ, with both shapes.

    The message names at most ten of each.
    """

    def __init__(
        self, message: str, missing: Sequence[str] = (), unexpected: Sequence[str] = (), misshaped: Sequence[str] = ()
    ):
        self.missing, self.unexpected, self.misshaped = list(missing), list(unexpected), list(misshaped)
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped)):
            if keys:
                more = f" and {len(keys) - _MOST_NAMED} more" if len(keys) > _MOST_NAMED else ""
                message += f"; {kind}: {', '.join(keys[:_MOST_NAMED])}{more}"
        super().__init__(message)


def load_official(model: nn.Module, path: str | PathLike[str], *, head: bool = True) -> nn.Module:
    """Load a checkpoint file into a model and return the model.

    Args:
        model: A model of this package; with or without a head, or a feature extractor made by `features_only=True`;
            compiled or in parallel or neither.
        path: A `.safetensors` file, or one written by `torch.save` (only tensors and plain containers are unpickled).
        head: False keeps the model's own head and ignores the file's: for fine-tuning on other classes, say from the
            21,841 of ImageNet-22K. With True a head of another size is an error, never skipped in silence.

    The parameters may lie in any container: a training script's, Lightning's, an averaged, parallel or compiled
    model's, a LightningModule's that holds more. Where a file holds a moving average of the weights, that is what is
    loaded. A file of merged kernels merges the model; one of a deployed net fits a deployed model only. A model without
    head ignores the file's head; the batch norms that RepLKNet-XL adds for dense prediction keep their initial values
    if the file has none.

    Raises:
        CheckpointError: The file is not a checkpoint, or does not fit; the model is unchanged.
        FileNotFoundError: There is no such file.
    """
    trunk = trunk_of(model)
    state = _ours(_read(path), trunk)
    _require_form(state, trunk, path)
    if not head:
        state = {key: value for key, value in state.items() if not key.startswith("head.")}
    merged = _merged_in(state, trunk)
    unfit = _unfit(state, trunk, merged, "" if head else r"|^head\.")
    if any(unfit):
        remedy = "build the model with the options of the file, or pass head=False if only the head differs"
        raise CheckpointError(f"{path} does not fit this {type(trunk).__name__}: {remedy}", *unfit)
    _merge(trunk, merged)
    trunk.load_state_dict(state, strict=False)
    return model


def trunk_of(model: Any) -> nn.Module:
    """The net inside of what wraps it: torch.compile, parallel modules, an average of weights, a feature extractor."""
    if hasattr(model, "_orig_mod"):  # torch.compile's
        return trunk_of(model._orig_mod)
    if isinstance(model, DistributedDataParallel | nn.DataParallel | AveragedModel | ModelEmaV2 | ModelEmaV3):
        return trunk_of(model.module)
    return model.model if isinstance(model, FeatureGetterNet) else model


def load_weights(net: nn.Module, path: str) -> None:
    """Load a checkpoint into a net of this package, or one of a net of timm's into that.

    Raises CheckpointError, and FileNotFoundError as `load_official` does.
    """
    if isinstance(net, Classifier):
        load_official(net, path)
    elif path.endswith((".npz", ".npy")):
        try:
            load_checkpoint(net, path)
        except FileNotFoundError:
            raise
        except Exception as error:  # what numpy and timm make of other files
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{path} does not fit this {type(net).__name__}: {reason}") from error
    else:
        _load_foreign(net, path, whole=True)


def load_backbone(features: nn.Module, path: str | PathLike[str]) -> nn.Module:
    """Load a classifier's checkpoint into the feature extractor of the same net and return the extractor.

    Args:
        features: What `timm.create_model(name, features_only=True)` made, for a net of this package or of timm.
        path: As for `load_official`; what the extractor does not have, the head above all, is left out.

    Raises:
        CheckpointError: The file is not a checkpoint, or does not fit; the extractor is unchanged.
        FileNotFoundError: There is no such file.
    """
    trunk: nn.Module = features.model if isinstance(features, FeatureGetterNet) else features
    if isinstance(trunk, Classifier):
        return load_official(features, path)
    _load_foreign(trunk, path, whole=False)
    return features


def _load_foreign(net: nn.Module, path: str | PathLike[str], whole: bool) -> None:
    """Load a net of timm's; unless `whole`, the file may hold more."""
    own = net.state_dict()
    # timm's lists of features call the child 0 of `stages` stages_0
    plain = {key: _FLATTENED.sub(r"\1.\2.", key) for key in own}
    found = entries(_read(path), dict.fromkeys([*plain.values(), *own]))
    tensors = {key: value for key, value in found.items() if isinstance(value, Tensor)}
    names = {key: key if key in tensors else plain[key] for key in own}
    state = {key: tensors[name] for key, name in names.items() if name in tensors}
    missing = [name for key, name in names.items() if key not in state and not key.endswith("num_batches_tracked")]
    known = set(names.values())
    unexpected = [name for name in found if name not in known] if whole else []
    misshaped = [
        _both_shapes(names[key], value, own[key]) for key, value in state.items() if value.shape != own[key].shape
    ]
    if missing or unexpected or misshaped:
        kind = type(net).__name__ if whole else f"feature extractor {type(net).__name__}"
        message = f"{path} does not fit the {kind}: build it as the file's net was"
        raise CheckpointError(message, missing, unexpected, misshaped)
    net.load_state_dict(state, strict=False)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Entries of a checkpoint under this package's names; the hook that timm calls before it loads weights.

    Args:
        state_dict: What the file holds: the parameters, or a container of them.
        model: The model to be loaded; where it has no head or was pruned, the file's surplus is left out. Entries of
            merged kernels merge it.

    What the checkpoint may lack, as the batch norms that RepLKNet-XL adds for dense prediction, stays as it is in the
    model. The head and the first convolution are left to timm, which drops or adapts them.

    Raises CheckpointError where the entries are of a form that the model cannot take, or do not fit it: timm alone
    would leave them out without a word as soon as `num_classes` differs.
    """
    state = _ours(state_dict, model)
    _require_form(state, model, "the checkpoint")
    merged = _merged_in(state, model)
    adapted = {key: value for key, value in state.items() if not _ADAPTED.match(key)}
    unfit = _unfit(adapted, model, merged, rf"|{_ADAPTED.pattern}")
    if any(unfit):
        remedy = "build the model with the options of the checkpoint"
        raise CheckpointError(f"the checkpoint does not fit this {type(model).__name__}: {remedy}", *unfit)
    _merge(model, merged)
    return {key: value for key, value in model.state_dict().items() if _OPTIONAL.search(key)} | state


def _ours(content: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    found = entries(content, model.state_dict().keys())
    state = {re.sub(r"^head\.(fc|cls_22k)\.", "head.", key): value for key, value in found.items()}
    if "stages.0.norm.weight" not in state:  # else it is dense prediction's norm, one for each stage
        state = {re.sub(r"^stages\.\d+\.norm\.", "norm.", key): value for key, value in state.items()}
    if getattr(model, "num_classes", None) == 0:
        state = {key: value for key, value in state.items() if _has_place(key, model)}
    return state


def _form(keys: Iterable[str]) -> str:
    """What was done to the net that has these parameters."""
    keys = list(keys)
    if any(re.match(r"stem\.(0\.)?conv\.bias$", key) for key in keys):
        return "deployed"
    if any("_reparam." in key for key in keys):
        return "merged"
    return "as trained" if any(re.match(r"stem\.(0\.)?bn\.", key) for key in keys) else "unknown"


def _require_form(state: Mapping[str, Any], model: nn.Module, path: str | PathLike[str]) -> None:
    keys = model.state_dict().keys()
    computed = [key for key in state if _COMPUTED.search(key) and key not in keys]
    if computed:
        remedy = "make them plain before they are saved (torch.nn.utils.prune.remove, remove_parametrizations)"
        raise CheckpointError(f"{path} holds weights that are pruned or parametrized, as {computed[0]}: {remedy}")
    file, own = _form(state), _form(keys)
    if file == own or (file, own) == ("merged", "as trained") or "unknown" in (file, own):
        return
    if file == "deployed":
        remedy = "deploy the model first, then load the file into it by load_official"
    else:
        remedy = "load the file into a fresh model, and merge or deploy that"
    raise CheckpointError(f"{path} holds a net that is {file}, but this {type(model).__name__} is {own}: {remedy}")


def _merged_in(state: Mapping[str, Any], model: nn.Module) -> dict[str, nn.Module]:
    """Merged copies of the model's layers that are merged in the file but not yet in the model, by their names."""
    merged = {}
    for name, module in model.named_modules():
        layer: Any = module
        own = {f"{name}.{key}" for key in layer.state_dict()} if hasattr(layer, "reparameterize") else set()
        if any(key.startswith(f"{name}.") and "_reparam." in key and key not in own for key in state if own):
            merged[name] = copied(layer)
            merged[name].reparameterize(name)
    return merged


def _merge(model: nn.Module, names: Iterable[str]) -> None:
    for name in names:
        layer: Any = model.get_submodule(name)
        layer.reparameterize(name)


def _unfit(
    state: Mapping[str, Any], model: nn.Module, merged: Mapping[str, nn.Module], ignored: str
) -> tuple[list[str], list[str], list[str]]:
    """Of the model once the layers in `merged` are merged: what the file lacks, has too much, and in another shape."""
    expected = _expected_shapes(model, merged)
    optional = re.compile(_OPTIONAL.pattern + ignored)
    missing = [key for key in expected if key not in state and not optional.search(key)]
    unexpected = [key for key, value in state.items() if key not in expected or not isinstance(value, Tensor)]
    misshaped = [
        f"{key} {tuple(state[key].shape)} in the file, {shape} in the model"
        for key, shape in expected.items()
        if key in state and key not in unexpected and tuple(state[key].shape) != shape
    ]
    return missing, unexpected, misshaped


def _both_shapes(key: str, found: Tensor, own: Tensor) -> str:
    return f"{key} {tuple(found.shape)} in the file, {tuple(own.shape)} in the model"


def _has_place(key: str, model: nn.Module) -> bool:
    part, _, rest = key.partition(".")
    module = getattr(model, part, None)
    if isinstance(module, nn.ModuleList):
        return int(rest.partition(".")[0]) < len(module)
    return isinstance(module, nn.Module) and len(module.state_dict()) > 0


def _read(path: str | PathLike[str]) -> Mapping[str, Any]:
    try:
        return read(Path(path))
    except UnreadableError as error:
        raise CheckpointError(str(error)) from error


def _expected_shapes(model: nn.Module, merged: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's state_dict once its layers are as their copies in `merged`."""
    branches = tuple(f"{name}." for name in merged)
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items() if not (branches and k.startswith(branches))}
    for name, layer in merged.items():
        shapes |= {f"{name}.{key}": tuple(value.shape) for key, value in layer.state_dict().items()}
    return shapes

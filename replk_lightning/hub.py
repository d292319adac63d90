"""Nets to and from folders and the Hugging Face hub, whole: weights, every constructor argument, a model card.

A folder holds what timm reads (`model.safetensors`, `config.json`), so `timm.create_model("local-dir:FOLDER",
pretrained=True)` and, once it is pushed, `timm.create_model("hf-hub:OWNER/NAME", pretrained=True)` build it too, with
this package imported.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import HfApi, ModelCardData
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from scipy import stats
from timm.models._hub import save_config_for_hf
from torch import nn

from replk_lightning.models.classifier import Classifier
from replk_lightning.models.weights import checkpoint_filter_fn, trunk_of

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
DATA_CONFIG = {"input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode"}
Record = Mapping[str, Any]
_TOLD = ("ablation", "row", "scale", "data", "data_fingerprint", "recipe", "kind")
"""What the records of one run with several seeds share."""


class HubError(ValueError):
    """A net that cannot be saved whole, or a folder that holds none; the message is one sentence with the remedy."""


def save_pretrained(
    net: nn.Module,
    folder: str | Path,
    *,
    records: str | Path | Iterable[str | Path] = (),
    licence: str = "mit",
    data_config: dict[str, Any] | None = None,
) -> Path:
    """Write a net into a folder that `from_pretrained` and timm read back bit by bit; returns the folder.

    Args:
        net: What `timm.create_model` made, of this package or of timm; in parallel, compiled or merged.
        folder: Made if need be; files of the same names are replaced.
        records: JSON files of the runs that trained it, one a seed, for the card and for how pictures are prepared:
            `results/NAME/runs/*.json`.
        licence: Of the weights, as the hub spells it.
        data_config: How its pictures are prepared, where neither the records nor its `pretrained_cfg` say it: timm's
            `input_size`, `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode`.

    Raises:
        HubError: Its constructor's arguments are not known, or do not give a net that takes its weights, or the
            records are of another net; nothing is written.
    """
    trunk = trunk_of(net)
    architecture = getattr(trunk, "pretrained_cfg", {}).get("architecture")
    if architecture is None or not hasattr(trunk, "_model_args"):
        raise HubError(f"how this {type(trunk).__name__} was built is not known: build it by timm.create_model.")
    if unknown := set(data_config or ()) - DATA_CONFIG:
        raise HubError(f"data_config has no {min(unknown)!r}: timm knows {', '.join(sorted(DATA_CONFIG))}.")
    runs = [_read(Path(path)) for path in ([records] if isinstance(records, str | Path) else records)]
    # the format takes neither shared memory nor other layouts
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in trunk.state_dict().items()
    }
    with tempfile.TemporaryDirectory() as draft:
        config = Path(draft) / CONFIG
        data_config = (_preparation(runs[0], trunk) if runs else {}) | (data_config or {})
        try:
            save_config_for_hf(trunk, str(config), data_config=data_config)
        except ValueError as error:  # timm's, of arguments that JSON does not hold
            raise HubError(f"{architecture} cannot be saved: {str(error).rstrip('.')}.") from error
        content = config.read_text(encoding="utf-8")
    arguments = json.loads(content).get("model_args", {})
    _require_same(architecture, arguments, trunk, tensors)
    _require_of(runs, architecture, arguments)
    text = card(architecture, arguments, trunk, runs, licence)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(content, encoding="utf-8")
    (folder / CARD).write_text(text, encoding="utf-8")
    return folder


def push_to_hub(
    net: nn.Module,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Add model",
    **saving: Any,
) -> str:
    """`save_pretrained` into a repository of the hub, made if need be; returns the commit's address.

    A card that the repository has already stays as it is.

    Args:
        repo_id: OWNER/NAME.
        private, token, revision, message: As huggingface_hub takes them.
        saving: `save_pretrained`'s `records`, `licence` and `data_config`.

    Raises:
        HubError: As `save_pretrained`, or the hub cannot be reached or refuses.
    """
    hub = HfApi(token=token, library_name="replk-lightning")
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(net, folder, **saving)
        try:
            made = hub.create_repo(repo_id, private=private, exist_ok=True)
            kept = [CARD] if hub.file_exists(made.repo_id, CARD, revision=revision) else []
            commit = hub.upload_folder(
                repo_id=made.repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=message,
                ignore_patterns=kept,
            )
        except Exception as error:  # of each transport its own
            reason = str(error).partition("\n")[0].rstrip(".:")
            remedy = "look at its name, the token and the connection"
            raise HubError(f"{repo_id} cannot be pushed ({reason}): {remedy}.") from error
    return str(commit.commit_url)


def from_pretrained(source: str | Path, **options: Any) -> nn.Module:
    """The net in a folder of `save_pretrained`, or in a repository of the hub.

    Args:
        source: A folder, or OWNER/NAME, or OWNER/NAME@REVISION.
        options: Constructor's arguments to be other than saved. With another `num_classes` the head is new, with
            another `in_chans` the first convolution is adapted, as timm does.

    Raises:
        HubError: There is no such net, it cannot be fetched, or its family is not registered with timm here.
        CheckpointError: Its weights do not fit the options.
    """
    name = str(source).removeprefix("hf-hub:").removeprefix("local-dir:")
    local = Path(name).is_dir() and bool(name)
    if local and not (Path(name) / CONFIG).is_file():
        raise HubError(f"{name} holds no {CONFIG}: name a folder that save_pretrained has written.")
    if not local and (name.count("/") != 1 or name.startswith((".", "/")) or Path(name).exists()):
        raise HubError(f"{name!r} is neither a folder nor a name on the hub: write OWNER/NAME.")
    try:
        return timm.create_model(f"{'local-dir' if local else 'hf-hub'}:{name}", pretrained=True, **options)
    except RuntimeError as error:
        if str(error).startswith("Unknown model"):
            remedy = "import the package that has it"
            raise HubError(f"{name} holds a net that timm does not know here: {remedy}.") from error
        if "No suitable checkpoints" not in str(error):
            raise
        raise HubError(f"{name} holds no {WEIGHTS}: save or download it again.") from error
    except (KeyError, TypeError, JSONDecodeError, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".:")
        remedy = "it is damaged, was not saved by timm or this package, or has no such option"
        raise HubError(f"{name} cannot be read ({reason}): {remedy}.") from error
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        reason = str(error).partition("\n")[0].rstrip(".:")
        raise HubError(f"{name} cannot be fetched ({reason}): look at its name and at the connection.") from error


def _require_same(architecture: str, arguments: Record, net: nn.Module, tensors: Mapping[str, Any]) -> None:
    """Raise HubError unless the arguments give a net that takes the weights."""
    try:
        with torch.random.fork_rng(devices=[]):
            again = timm.create_model(architecture, **arguments)
        again.load_state_dict(checkpoint_filter_fn(tensors, again) if isinstance(again, Classifier) else dict(tensors))
    except (RuntimeError, ValueError, TypeError) as error:
        reason = ": ".join(line.strip().rstrip(".:") for line in str(error).splitlines()[:2])
        raise HubError(_otherwise(net, reason)) from error
    ours, theirs = _computations(net), _computations(again)
    if differing := [name for name in ours if ours[name] != theirs.get(name)]:
        name = differing[0]
        raise HubError(_otherwise(net, f"{name or 'the net'} is {ours[name]}, not {theirs.get(name, 'there')}"))


def _otherwise(net: nn.Module, reason: str) -> str:
    remedy = "give it a head by reset_classifier, other parts as arguments, and save it before it is deployed"
    return f"this {type(net).__name__} is not what its constructor's arguments give ({reason}): {remedy}."


def _computations(net: nn.Module) -> dict[str, str]:
    """What each module computes, by its class and numbers; dropout, which training alone sees, is left out."""
    seen = [(name, module) for name, module in net.named_modules() if "drop" not in type(module).__name__.lower()]
    return {name: f"{type(module).__name__}({module.extra_repr()})" for name, module in seen}


def _read(path: Path) -> Record:
    """A run's record; raises HubError."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HubError(f"{path} cannot be read as a record: {error}.") from error
    needed = {"model", "options", "seed", "data", *_TOLD}
    if not isinstance(record, dict) or not needed <= record.keys() or record.get("status") != "done":
        raise HubError(f"{path} is no record of a finished run: name a JSON file that python -m ablations.run left.")
    if record["kind"] != "train":
        raise HubError(f"{path} is the record of a {record['kind']}, not of a classifier's training: name one of that.")
    return record


def _require_of(runs: list[Record], architecture: str, arguments: Record) -> None:
    """Raise HubError unless the records are of one run with several seeds, and of this net."""
    for run in runs:
        if any(run[fact] != runs[0][fact] for fact in _TOLD):
            raise HubError("the records are of different runs: give those of one row, scale and set, a seed each.")
        options = run["options"].items()
        # timm writes an img_size as two numbers
        differing = [key for key, value in options if arguments.get(key, value) not in (value, [value, value])]
        if run["model"] != architecture or differing:
            what = ", ".join(differing) or f"name, {run['model']},"
            raise HubError(f"a record is of another net, whose {what} differs: give those of this {architecture}.")


def _preparation(run: Record, net: nn.Module) -> dict[str, Any]:
    """How the run's evaluation prepared its pictures, in timm's words."""
    from replk_lightning.data import PHOTOGRAPHS, create_data  # seconds, for records only
    from replk_lightning.data.augment import Augmentation

    recipe, channels = run["recipe"], getattr(net, "in_chans", 3)
    if run["data"].partition(":")[0] in PHOTOGRAPHS:
        looks = Augmentation(**{key: recipe[key] for key in ("interpolation", "mean", "std")})
    else:  # held in memory, never cropped
        data = create_data(run["data"])
        looks = Augmentation(mean=(data.mean,) * channels, std=(data.std,) * channels, crop_pct=1.0)  # type: ignore[arg-type]
    found = asdict(looks.preprocessing(recipe["resolution"]))
    return found | {"input_size": (channels, *found.pop("size"))}


# --- the card --------------------------------------------------------------------------------------------------------


def card(architecture: str, arguments: Record, net: nn.Module, records: list[Record], licence: str) -> str:
    """A model card: what the net is, what it was trained on and by which command, its metrics with their interval."""
    facts = ModelCardData(
        license=licence, library_name="timm", pipeline_tag="image-classification", tags=["timm", "replk-lightning"]
    )
    parameters = sum(parameter.numel() for parameter in net.parameters())
    written = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    lines = [
        f"---\n{facts.to_yaml()}\n---\n",
        f"# {architecture}\n",
        f"`timm.create_model({', '.join(filter(None, [repr(architecture), written]))})`, {parameters:,} parameters, "
        f"{'merged' if _is_merged(net) else 'as it was trained'}.\n",
        "## Use\n",
        "```python\nimport replk_lightning\n\nnet = replk_lightning.from_pretrained(FOLDER_OR_REPOSITORY)\n```\n",
        "## Training\n",
        *(_training(records) if records else ["Nothing is recorded of its training.\n"]),
    ]
    return "\n".join(lines)


def _is_merged(net: nn.Module) -> bool:
    return any("_reparam." in name for name in net.state_dict())


def _training(records: list[Record]) -> Iterable[str]:
    first = records[0]
    seeds = sorted(record["seed"] for record in records)
    recipe = first["recipe"]
    command = f"python -m ablations.run {first['ablation']} --scale {first['scale']} --rows {first['row']} --seeds"
    yield f"On `{first['data']}` (fingerprint {first['data_fingerprint']}), recipe `{recipe['name']}`:\n"
    yield f"```sh\n{command} {' '.join(map(str, seeds))}\n```\n"
    yield f"Commit {', '.join(sorted({str(record['commit']) for record in records}))}; {first['hardware']}.\n"
    yield "| metric | mean | 95 % interval | seeds |\n| --- | ---: | ---: | ---: |"
    for metric in sorted(set.intersection(*(set(record["metrics"]) for record in records))):
        values = [record["metrics"][metric] for record in records]
        mean = sum(values) / len(values)
        yield f"| {metric} | {mean:.2f} | {_interval(values, mean)} | {len(values)} |"
    yield ""


def _interval(values: list[float], mean: float) -> str:
    """Student's t; one seed has none."""
    if len(values) < 2:
        return "—"
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{mean - half:.2f} to {mean + half:.2f}"

"""What a checkpoint and the task that is to go on from it have to agree on."""

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from replk_lightning.models.weights import CheckpointError
from replk_lightning.recipes import RECIPES, get_recipe

GROUPING = ("optimizer", "layer_decay", "decay_by_stage", "decay_norm_and_bias")
"""Fields of a recipe that say which state an optimizer keeps, and for which groups of parameters."""

REMEDY = "start a training of its own from these weights with `init` (--model.init)"


def require_fit(task: L.LightningModule, checkpoint: Mapping[str, Any]) -> None:
    """Go on if `task` can take a checkpoint's weights and, in training, its optimizer; else raises CheckpointError."""
    then, now = checkpoint.get("hyper_parameters", {}), dict(task.hparams)
    if ("tasks" in then) != ("tasks" in now):
        raise CheckpointError("the checkpoint is of several tasks, and this net has one, or the other way round.")
    _require_weights(task, checkpoint.get("state_dict"), then, now)
    trainer = task._trainer
    if trainer is None or trainer.state.fn != TrainerFn.FITTING:
        return
    if "optimizer_states" not in checkpoint:
        raise CheckpointError(f"the checkpoint holds weights only, so that training cannot go on: {REMEDY}.")
    changed = [change for name, change in _changes(_fields(then), _fields(now)).items() if name in GROUPING]
    done, step = _epochs(checkpoint), checkpoint.get("global_step", 0)
    for what, so_far, wanted in (("epochs", done, trainer.max_epochs), ("steps", step, trainer.max_steps)):
        if wanted not in (None, -1) and so_far > wanted:
            raise CheckpointError(f"the checkpoint has {so_far} {what} behind it, more than the {wanted} to train for.")
    if changed:
        raise CheckpointError(f"the checkpoint's optimizer is another ({', '.join(changed)}): {REMEDY}.")


def _require_weights(task: L.LightningModule, state: Any, then: dict[str, Any], now: dict[str, Any]) -> None:
    if not isinstance(state, Mapping) or (task._trainer and task._trainer.strategy.restore_checkpoint_after_setup):
        return  # shards, which their strategy reads
    found = {name: tuple(value.shape) for name, value in state.items()}
    own = {name: tuple(value.shape) for name, value in task.state_dict().items()}
    if not task.strict_loading:
        found = {name: shape for name, shape in found.items() if name in own}
        own = {name: shape for name, shape in own.items() if name in found}
    if found == own:
        return
    changed = [change for name, change in _changes(then, now).items() if name != "init"]  # which builds no net
    differing = next(name for name in {**found, **own} if found.get(name) != own.get(name))
    why = ", ".join(changed) or f"{differing} has shape {found.get(differing)}, now {own.get(differing)}"
    raise CheckpointError(f"the checkpoint is of another net or of other data ({why}): name those, or {REMEDY}.")


def _epochs(checkpoint: Mapping[str, Any]) -> int:
    """Epochs that are over, those included at whose very end the checkpoint was written."""
    try:
        epochs: int = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    except KeyError:
        return 0
    return epochs


def _fields(options: Mapping[str, Any]) -> dict[str, Any]:
    name = options.get("recipe")
    return vars(get_recipe(name, **(options.get("recipe_overrides") or {}))) if name in RECIPES else {}


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    both = [name for name in now if name in then and then[name] != now[name]]
    return {name: f"{name} {then[name]}, now {now[name]}" for name in both}

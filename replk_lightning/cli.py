"""python -m replk_lightning fit | validate | test: LightningCLI over this package's tasks and data.

`--model.recipe` names a recipe of `replk_lightning.recipes` and with it the task: classification, segmentation
(upernet_…, deeplabv3plus_…) or detection (fcos_…, cascade_mask_rcnn_…). Its epochs or iterations, resolution, batch
size, augmentation and EMA hold unless a flag says otherwise. Every flag of Lightning's Trainer works, and
--trainer.logger takes csv, tensorboard and wandb, or several of them as [csv,tensorboard].

`python -m replk_lightning predict --ckpt last.ckpt --images FOLDER --out FOLDER` looks at pictures, `pseudo-label`
writes soft labels, `erf`, `shape-bias` and `complexity` measure any net of timm's or of a checkpoint, `export` writes
it as ONNX or TorchScript, and `timm` runs a script of timm's with our models; each has a --help of its own.
"""

import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.trainer import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from replk_lightning.commands import COMMANDS, run_command
from replk_lightning.data import DataError, ImageData, data_for_recipe
from replk_lightning.models import ModelError
from replk_lightning.models.weights import CheckpointError
from replk_lightning.recipes import DetectRecipe, Recipe, RecipeError, SegmentRecipe, get_recipe
from replk_lightning.tasks.base import NonFiniteLossError
from replk_lightning.tasks.classify import ClassifyTask
from replk_lightning.tasks.factory import named_task, read_checkpoint
from replk_lightning.trainer.fastest_layout import FastestLayout
from replk_lightning.trainer.loggers import LoggerError, NamingTrainer
from replk_lightning.trainer.resume import ExactResume

ROOT = "runs/fit"
"""Where checkpoints and logs go unless --trainer.default_root_dir says otherwise."""


def named_data(
    name: str | None = None,
    recipe: str = "replknet_120ep",
    recipe_overrides: dict[str, Any] | None = None,
    batch_size: int | None = None,
    options: dict[str, Any] | None = None,
) -> ImageData:
    """A data set of this package under a recipe.

    Args:
        name: mnist5k, fashion-mnist, generated, scenes, scenes-solid, scenes-garments, imagefolder:PATH, imagenet-1k or
            hf:NAME; for segmentation scenes-masks, scenes-solid-masks, scenes-garments-masks, masks:PATH,
            cityscapes:PATH or ade20k:PATH; for detection scenes-objects, scenes-solid-objects, scenes-garments-objects
            or coco:PATH. Default: mnist5k, and the recipe's own in segmentation and detection.
        recipe, recipe_overrides: the model's.
        batch_size: images a device and step (default: the recipe's; the learning rate scales with it).
        options: passed to the data set, for example its number of workers.
    """
    more = dict(options or {})
    if batch_size is not None:
        more["batch_size"] = batch_size
    for number, least in (("batch_size", 1), ("image_size", 1), ("num_workers", 0)):
        value = more.get(number, least)
        if not isinstance(value, int) or value < least:
            raise DataError(f"the data's {number} cannot be {value!r}: give it a whole number from {least} on.")
    found = get_recipe(recipe, **(recipe_overrides or {}))
    return data_for_recipe(name or data_of(found), found, **more)


def data_of(recipe: Recipe) -> str:
    """The data set that a recipe is for; MNIST where it is of classification, as that needs no download."""
    if isinstance(recipe, SegmentRecipe):
        return recipe.data
    return "coco" if isinstance(recipe, DetectRecipe) else "mnist5k"


class FlagError(ValueError):
    """Flags that Lightning's Trainer refuses, or that contradict each other."""


class OneLineLightningErrors(LightningArgumentParser):
    """Says what is wrong without repeating the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One sentence and 2."""
        self.exit(2, f"replk_lightning: {one_sentence(message)}\n")

    def add_class_arguments(self, theclass: type, *args: Any, **kwargs: Any) -> list[str]:
        """A logger by its name alone writes where everything else goes."""
        added: list[str] = super().add_class_arguments(theclass, *args, **kwargs)
        if any(action.dest == "save_dir" and action.default is None for action in self._actions):
            self.set_defaults(save_dir=ROOT)
        return added


def one_sentence(message: str) -> str:
    """Of jsonargparse's many lines the key and the value."""
    lines = [line.strip() for line in message.splitlines()]
    values = [line.partition(": ")[2] for line in lines if line.startswith("Given value: ")]
    return f"{lines[0].rstrip(':')} does not take {values[-1]}." if values else " ".join(lines[:2])


class ReplkCLI(LightningCLI):
    """LightningCLI whose defaults come from the recipe."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's without `predict`, which is a command of this package."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name != "predict"}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The model tells the data its recipe, the data tell the model their classes and channels."""
        parser.link_arguments("model.recipe", "data.recipe")
        parser.link_arguments("model.recipe_overrides", "data.recipe_overrides")
        for fact in ("num_classes", "in_chans"):
            parser.link_arguments(f"data.{fact}", f"model.{fact}", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Options of a checkpoint, where no flag says otherwise; raises CheckpointError and FlagError.

        Lightning's own lets the checkpoint win in silence.
        """
        verb = self.config.subcommand
        config = self.config[verb]
        path = config.ckpt_path
        if path in ("best", "last") and verb != "fit":
            raise FlagError(f"--ckpt_path={path} is known to the run that trains only: name the file.")
        if not path or not Path(path).exists() or Path(path).is_dir():
            return  # Lightning's own words, or its folder of shards
        then, model = read_checkpoint(Path(path))["hyper_parameters"], config.model
        if model.init not in (None, then.get("init")):
            raise FlagError("--model.init starts a training and --ckpt_path goes on with one: leave one of them out.")
        if model.model != then.get("model"):
            raise FlagError(f"{path} holds a {then.get('model')}, no {model.model}: name that with --model.model.")
        options = {name: then.get(name) for name in ("model_options", "recipe_overrides")}
        typed = {name: model[name] for name in options if model[name] is not None}
        for name, value in {"recipe": model.recipe, **typed}.items():
            if value != then.get(name):
                print(f"--model.{name} is {value} from now on; {path} was trained with {then.get(name)}")
        if verb == "fit" and self._is_typed("seed_everything"):
            print(f"the random state is the one of {path}, whatever --seed_everything is")
        self.config = self.parser.parse_object({verb: {"model": options | typed | {"init": None}}}, self.config)

    def _is_typed(self, key: str) -> bool:
        verb = self.config.subcommand
        return bool(self.config[verb].get(key) != self._parser(verb).get_default(key))

    def before_instantiate_classes(self) -> None:
        """As many epochs or iterations as the recipe says unless a flag does."""
        config = self.config[self.subcommand]
        if config.trainer.accumulate_grad_batches < 1:
            raise FlagError("--trainer.accumulate_grad_batches is to be a number above 0.")
        recipe = get_recipe(config.model.recipe, **(config.model.recipe_overrides or {}))
        if self.subcommand == "fit" and config.trainer.max_epochs is None and config.trainer.max_steps == -1:
            for name, value in recipe.length.items():
                config.trainer[name] = value
        loggers = config.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            options = getattr(logger, "init_args", {})
            if options.get("save_dir") == ROOT:
                options["save_dir"] = config.trainer.default_root_dir

    def instantiate_classes(self) -> None:
        """Lightning's; raises FlagError for what is wrong with a flag, and passes on what names itself."""
        try:
            super().instantiate_classes()
        except ERRORS:
            raise
        except (ValueError, TypeError, ImportError) as error:
            raise FlagError(f"these flags are refused: {reason_of(error)}") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Lightning's, with the callbacks of every run where flags do not bring or forbid them."""
        config = self.config_init[self.subcommand].trainer
        own: list[Callback] = [ExactResume(), FastestLayout()]
        if not (config.barebones or config.fast_dev_run or config.enable_checkpointing is False):
            own.append(ModelCheckpoint(save_last=True, save_on_train_epoch_end=True))
        self.trainer_defaults["callbacks"] = [each for each in own if not self._is_given(type(each))]
        try:
            return super().instantiate_trainer(**kwargs)
        except LoggerError:
            raise
        except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
            raise FlagError(f"the trainer does not take these flags: {reason_of(error)}") from error

    def after_instantiate_classes(self) -> None:
        """The recipe's EMA; the weights that are looked at, where nothing is trained."""
        config = self.config[self.subcommand]
        if self.subcommand != "fit" and not config.ckpt_path:
            self._take_weights(config.model)
        if self.subcommand == "fit" and self.model.recipe.ema is not None and not self._is_given(EMAWeightAveraging):
            ema = EMAWeightAveraging(decay=self.model.recipe.ema)
            self.trainer.callbacks.insert(0, ema)  # type: ignore[attr-defined] # Lightning sets it from outside

    def _take_weights(self, options: Any) -> None:
        """Load what --model.init names before a net is looked at; raises FlagError where a part would be untrained."""
        if options.init is None and (options.model_options or {}).get("pretrained"):
            return
        if options.init is None:
            print("no --ckpt_path and no --model.init: the net is looked at untrained")
        elif not isinstance(self.model, ClassifyTask) or self.model.recipe.new_head:
            raise FlagError("--model.init holds no weights for the head: name a checkpoint with --ckpt_path.")
        else:
            self.model.start_from(options.init)

    def _is_given(self, kind: type[Callback]) -> bool:
        given = self.config_init[self.subcommand].trainer.callbacks
        return any(isinstance(each, kind) for each in (given if isinstance(given, list) else [given]))


def reason_of(error: BaseException) -> str:
    """What is wrong, in one line: above all the package that is not installed."""
    chain: list[BaseException] = [error]
    while following := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(following)
    missing = [each for each in chain if isinstance(each, ImportError)]
    return one_sentence(str(missing[0])).partition("\n")[0] if missing else one_sentence(str(error))


def is_lightnings(error: Exception) -> bool:
    """Whether Lightning itself raised it, as it does for flags that do not fit the data."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("lightning.")


ERRORS = (CheckpointError, DataError, FlagError, LoggerError, ModelError, RecipeError, NonFiniteLossError, OSError)
"""Those whose message is a sentence for the one who typed the command."""


def main() -> int:
    """Run the command; a wrong model, recipe or data set gives one sentence and 2."""
    if sys.argv[1:] and sys.argv[1] in COMMANDS:
        return run_command(sys.argv[1], sys.argv[2:])
    try:
        ReplkCLI(
            named_task,
            named_data,
            trainer_class=NamingTrainer,
            parser_kwargs={"description": __doc__},
            parser_class=OneLineLightningErrors,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"default_root_dir": ROOT},
        )
    except ERRORS as error:
        print(f"replk_lightning: {error}", file=sys.stderr)
        return 2
    except UnicodeDecodeError as error:
        print(f"replk_lightning: the file of --config is no text: {error}", file=sys.stderr)
        return 2
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        if not is_lightnings(error):
            raise
        print(f"replk_lightning: {reason_of(error)}", file=sys.stderr)
        return 2
    return 0

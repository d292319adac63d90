"""Callbacks for anyone's `fit`: any LightningModule with any net in it, of this package or not.

    Trainer(callbacks=[EffectiveReceptiveField(), KernelNorms(), MergeBeforeValidation()])

None of them changes what is learned: weights, optimizers, generators, modes, gradients and hooks are what they are
without them, also after an exception.
"""

import io
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib as mpl
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from replk_lightning.atomic import write_atomically
from replk_lightning.measure.erf import frozen, positive_gradients, scores_of
from replk_lightning.measure.kernel_pictures import central_share, depthwise_kernels
from replk_lightning.trainer.merging import Merged
from replk_lightning.trainer.resume import kept_random_state


class CallbackError(ValueError):
    """A callback cannot do its work here; the message is one sentence that says why."""


class _OfWholeWeights(L.Callback):
    """For trainers whose processes hold all of the net."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raises CallbackError where weights lie in shards."""
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise CallbackError(
                f"{type(self).__name__} needs a process that holds all weights, and {type(trainer.strategy).__name__} "
                "may shard them: leave it out, or train with ddp."
            )


class _EveryNEpochs(_OfWholeWeights):
    """Due after some epochs."""

    def __init__(self, every_n_epochs: int = 1) -> None:
        self.every_n_epochs = _positive("every_n_epochs", every_n_epochs)

    def _is_due(self, trainer: L.Trainer) -> bool:
        return trainer.state.fn != TrainerFn.FITTING or (trainer.current_epoch + 1) % self.every_n_epochs == 0


class EffectiveReceptiveField(_EveryNEpochs):
    """Pictures of the effective receptive field on a few validation images (Sec. 5.1), dark where much is seen.

    Written as `erf/epoch=E-step=S.png`, as large as the images, into the run's folder, and given to those loggers that
    take images: TensorBoard, and any with Lightning's `log_image`. The sanity check tries one image and writes nothing,
    so that what cannot work is told before the training. Rank 0 measures its own images. With averaged weights (EMA)
    the field is that of the net that is validated.

    Args:
        images: how many of each validation's first images the scores are summed over.
        every_n_epochs: how often; `trainer.validate` always draws.
        module: name of the submodule whose map (N, C, h, w) is looked at, as `model.layer4`, while the net that it
            begins with, here `model`, sees the images; or of one whose `forward_features` gives the map. Default: the
            first that has `forward_features`, as timm's nets do.

    Raises CallbackError or FieldError: no such module, batches without float images (N, C, H, W), no feature map,
    weights in shards.
    """

    def __init__(self, images: int = 8, every_n_epochs: int = 1, module: str | None = None) -> None:
        super().__init__(every_n_epochs)
        self.images, self.module = _positive("images", images), module
        self._left = 0
        self._total: Tensor | None = None

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ask for images if it is due."""
        wanted = 1 if trainer.sanity_checking else self.images
        self._left, self._total = wanted if trainer.sanity_checking or self._is_due(trainer) else 0, None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the scores of a batch's images, as long as some are wanted and of one size."""
        if not self._left or not trainer.is_global_zero:
            return
        net, images = self._net(pl_module), images_of(batch)[: self._left]
        if self._total is not None and self._total.shape != images.shape[2:]:
            return
        self._left -= len(images)
        with kept_random_state():
            total, _ = positive_gradients(net, images.split(1))
        if total is not None:
            self._total = total if self._total is None else self._total + total

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw what was measured."""
        if trainer.sanity_checking or not self._is_due(trainer):
            return
        folder = run_folder(trainer)  # all processes have to ask
        if self._total is None and trainer.is_global_zero:
            rank_zero_warn("no validation image gave a finite effective receptive field: none is drawn")
        elif self._total is not None:
            pixels = heat_map(scores_of(self._total))
            name = f"epoch={trainer.current_epoch}-step={trainer.global_step}.png"
            write_atomically(folder / "erf" / name, png(pixels))
            log_image(trainer, "erf", pixels)
        self._total = None

    def _net(self, pl_module: L.LightningModule) -> nn.Module:
        if self.module is None:
            found = next((each for each in pl_module.modules() if hasattr(each, "forward_features")), None)
            if found is None:
                raise CallbackError(
                    f"nothing in {type(pl_module).__name__} has forward_features: name the module that gives a feature "
                    "map, as EffectiveReceptiveField(module='model.features')."
                )
            return found
        try:
            named = pl_module.get_submodule(self.module)
        except AttributeError:
            raise CallbackError(f"{type(pl_module).__name__} has no module {self.module!r}.") from None
        outer, _, inner = self.module.partition(".")
        whole = not inner or hasattr(named, "forward_features")
        return named if whole else _Inside(pl_module.get_submodule(outer), named, self.module)


class _Inside(nn.Module):
    """What a submodule gives while the net around it sees the pictures."""

    def __init__(self, net: nn.Module, inner: nn.Module, name: str) -> None:
        super().__init__()
        self.net, self.inner, self.name = net, inner, name

    def forward(self, x: Tensor) -> Any:
        """(N, 3, H, W) → the submodule's last output; raises CallbackError."""
        given: list[Any] = []
        hook = self.inner.register_forward_hook(lambda *seen: given.append(seen[-1]))
        try:
            self.net(x)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            outer, reason = self.name.partition(".")[0], str(error).partition("\n")[0]
            raise CallbackError(f"{outer!r}, around {self.name!r}, does not take the images: {reason}.") from error
        finally:
            hook.remove()
        if not given:
            raise CallbackError(f"{self.name!r} is not called as the images pass: name a module that is.")
        return given[-1]


class KernelNorms(_EveryNEpochs):
    """Logs of each depthwise layer its kernel's norm and central mass, after each training epoch or every n-th.

    `kernel_norm/LAYER` is the Frobenius norm of the weights (C, 1, K_h, K_w), and `central_mass/LAYER`, for kernels
    larger than 3×3, the share of their absolute values in the central 3×3 (Figure 6): 9 / K² where all are equal. Where
    a small kernel trains beside a large one, both are of the one that they are merged into.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log if it is due."""
        if not self._is_due(trainer):
            return
        with kept_random_state(), frozen(pl_module):  # weights may be computed, and then of a state that training moves
            kernels = {name: weight.detach().float() for name, weight in depthwise_kernels(pl_module).items()}
        if not kernels:
            rank_zero_warn(f"there is no depthwise layer in {type(pl_module).__name__} whose kernel could be logged")
        values = {f"kernel_norm/{name}": float(weight.norm()) for name, weight in kernels.items()}
        for name, weight in kernels.items():
            sizes = weight.abs().sum(dim=(0, 1))
            if max(sizes.shape) > 3 and sizes.any():
                values[f"central_mass/{name}"] = central_share(sizes)
        pl_module.log_dict(values, sync_dist=trainer.world_size > 1)


class MergeBeforeValidation(_OfWholeWeights):
    """Validates the net as it will be deployed: branches that train side by side are merged while a batch is validated.

    Merged are copies of the modules that timm's `reparameterize_model` merges (with `fuse`, `reparameterize` or
    `switch_to_deploy`); they stand in for the modules during validation steps alone, so that averaged weights (EMA) are
    in them, and checkpoints, optimizers and other callbacks never meet them.

    Raises CallbackError where weights lie in shards, ValueError where a branch carries hooks, which merging would lose.
    """

    def __init__(self) -> None:
        self._merged: Merged | None = None

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget what was merged of earlier weights."""
        self._merged = None

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Put the merged modules in place; the first batch makes them, when all weights are those of validation."""
        if self._merged is None:
            with kept_random_state():
                self._merged = Merged(pl_module, getattr(trainer.strategy.model, "broadcast_buffers", False))
            if not self._merged.places:
                rank_zero_warn(f"there is nothing to merge in {type(pl_module).__name__}: it is validated as it is")
        self._merged.put()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Put the modules back."""
        self._undo()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Free the memory."""
        self._merged = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Put the modules back where a validation step failed."""
        self._undo()
        self._merged = None

    def _undo(self) -> None:
        if self._merged is not None:
            self._merged.take_away()


def images_of(batch: Any) -> Tensor:
    """The first floating-point tensor of four dimensions in a batch of any structure; raises CallbackError."""
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.ndim == 4 and leaf.is_floating_point():
            return leaf
    raise CallbackError("the validation batches hold no images (N, C, H, W) of floats, so no field can be measured.")


def run_folder(trainer: L.Trainer) -> Path:
    """Where files of this run go: its first logger's folder, or the trainer's root; all processes have to ask."""
    logger: Any = trainer.logger
    folder = getattr(logger, "log_dir", None)
    if not isinstance(folder, str) and getattr(logger, "save_dir", None):
        folder = str(Path(logger.save_dir, str(logger.name), str(logger.version)))
    here = folder if isinstance(folder, str) else trainer.default_root_dir  # a fast_dev_run's logger has any attribute
    return Path(trainer.strategy.broadcast(here))


def log_image(trainer: L.Trainer, name: str, pixels: np.ndarray) -> None:
    """Give uint8 pixels (H, W, 3) to those of the loggers that take images."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, pixels, trainer.global_step, dataformats="HWC")
        elif hasattr(logger, "log_image"):
            logger.log_image(name, [pixels], trainer.global_step)


def heat_map(matrix: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] → uint8 pixels (H, W, 3), dark where there is much, as the figures of the ablations."""
    pixels: np.ndarray = mpl.colormaps["YlGnBu"](matrix, bytes=True)[..., :3]
    return pixels


def png(pixels: np.ndarray) -> bytes:
    """The file of uint8 pixels (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def _positive(name: str, value: int) -> int:
    if not isinstance(value, int) or value < 1:
        raise CallbackError(f"{name} is {value!r}: give it a whole number above 0.")
    return value

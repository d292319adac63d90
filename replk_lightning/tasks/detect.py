"""Object detection and instance segmentation as Sec. 4.5 trains them."""

from typing import Any, Literal

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics.detection import MeanAveragePrecision

from replk_lightning.distributed import of_all
from replk_lightning.models import ModelError
from replk_lightning.models.detectors import create_detector
from replk_lightning.recipes import DetectRecipe
from replk_lightning.tasks.base import Task
from replk_lightning.tasks.loaders import images_of, labelled
from replk_lightning.tasks.optim import warmup_multistep

MASK_THRESHOLD = 0.5
"""Probability from which on a pixel belongs to an object."""

IOUS = np.linspace(0.5, 0.95, 10).tolist()
RECALLS = np.linspace(0.0, 1.0, 101).tolist()
"""COCO's; torchmetrics' own are rounded to float32, so that a recall of exactly 0.1 does not reach the second one."""

Images = list[Tensor]
Targets = list[dict[str, Tensor]]


class DetectTask(Task):
    """A detector on a timm net, trained by one of `replk_lightning.recipes.detect`.

    Args:
        model: any timm name with feature maps of strides 4 to 32, this package's included.
        recipe: name of a recipe of detection; `recipe_overrides` replaces some of its fields.
        num_classes, in_chans: of the data.
        init: checkpoint of the classifier that the backbone starts from.
        model_options: passed to timm; the recipe's drop path is added where it has one.

    Batches are a list of images, float32 (C, H, W), and a list of targets: `boxes` float32 (n, 4), left, top, right and
    bottom in pixels, `labels` int64 (n,) from 0, `masks` uint8 (n, H, W) and, for objects that are crowds, `iscrowd`
    int64 (n,), which only validation looks at. Logs `train_loss` and its terms, and COCO's average precision in
    percent: `val_box_ap` (IoU 0.5 to 0.95), `val_box_ap50`, `val_box_ap75`, and the same of masks, `val_mask_ap` etc.,
    where the head has them (`test_…` in tests). Raises ModelError or RecipeError, one sentence each, for a wrong model
    or recipe.
    """

    recipe_class = DetectRecipe
    recipe: DetectRecipe

    def __init__(
        self,
        model: str = "replknet_31b",
        recipe: str = "cascade_mask_rcnn_3x",
        num_classes: int = 80,
        in_chans: int = 3,
        init: str | None = None,
        model_options: dict[str, Any] | None = None,
        recipe_overrides: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        options = self.follow(recipe, recipe_overrides, model_options)
        self.model = create_detector(model, self.recipe, num_classes, in_chans, **options)
        self.kinds: tuple[Literal["bbox", "segm"], ...] = (
            ("bbox", "segm") if self.recipe.head == "cascade_mask_rcnn" else ("bbox",)
        )
        # gathered here, as its own way waits for ever where processes have seen unequally many pictures
        unsynced: dict[str, Any] = {"backend": "faster_coco_eval", "sync_on_compute": False}
        self.average_precision = MeanAveragePrecision(
            iou_type=self.kinds, iou_thresholds=IOUS, rec_thresholds=RECALLS, **unsynced
        )

    def setup(self, stage: str) -> None:
        """As every task; raises ModelError for a net of 16 bits."""
        precision = getattr(self._trainer, "precision", None)
        if precision in ("16-true", "bf16-true"):
            raise ModelError(f"boxes need 32 bits, which {precision} leaves nowhere: take bf16-mixed.")
        super().setup(stage)

    def forward(self, images: Images) -> list[dict[str, Tensor]]:
        """Images (C, H, W) → for each `boxes` (n, 4), `scores` (n,), `labels` (n,) and, from masks, uint8 (n, H, W)."""
        found: list[dict[str, Tensor]] = self.model(images)
        for each in found:
            if "masks" in each:
                each["masks"] = (each["masks"][:, 0] >= MASK_THRESHOLD).to(torch.uint8)
        return found

    def training_step(self, batch: tuple[Images, Targets], batch_idx: int) -> Tensor:
        """Sum of the detector's losses; raises NonFiniteLossError."""
        images, targets = labelled(batch)
        losses = self.model(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        self.log_training_loss(loss, len(images))
        self.log_dict({f"train_{name}": value for name, value in losses.items()}, batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple[Images, Targets], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Compare one batch's detections."""
        images, targets = labelled(batch)
        found = self(images)
        if self.counted(batch_idx):
            self.average_precision.update(found, targets)

    def measures(self) -> dict[str, Tensor]:
        """Average precision in percent."""
        gather_pictures(self.average_precision)
        computed = self.average_precision.compute()
        self.average_precision.reset()
        found = dict[str, Tensor]()
        for kind, name in zip(self.kinds, ("box", "mask"), strict=False):
            prefix = f"{kind}_" if len(self.kinds) > 1 else ""
            found |= {f"{name}_ap{of.strip('_')}": 100 * computed[f"{prefix}map{of}"] for of in ("", "_50", "_75")}
        return found

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Tensor]]:
        """Detections of each image, as `forward` gives them."""
        found: list[dict[str, Tensor]] = self([*images_of(batch)])
        return found

    def share_of_peak(self, step: int, steps: int, lr: float) -> float:
        """Learning rate at `step` of `steps` over its peak: the recipe's warm-up, and a tenth after each milestone."""
        recipe = self.recipe
        milestones = [round(steps * epoch / recipe.epochs) for epoch in recipe.milestones]
        constant = recipe.warmup == "constant"
        return warmup_multistep(step, milestones, recipe.warmup_steps, recipe.warmup_ratio, constant)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """The recipe's bound on the gradient's norm, unless the trainer has its own."""
        bound = self.recipe.clip_norm if gradient_clip_val is None else gradient_clip_val
        self.clip_gradients(optimizer, bound, gradient_clip_algorithm or "norm")


def gather_pictures(metric: MeanAveragePrecision) -> None:
    """Put what all processes have seen into each one's `metric`."""
    own = {name: apply_to_collection(seen, Tensor, Tensor.cpu) for name, seen in metric.metric_state.items()}
    everyone = of_all(own)
    for name in own:
        setattr(metric, name, [picture for process in everyone for picture in process[name]])

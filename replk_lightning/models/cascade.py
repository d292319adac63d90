"""Cascade Mask R-CNN, a two-stage detector whose second stage comes three times (Cai and Vasconcelos 2019), on any timm
net: Table 9.

Pyramid, proposals, RoIAlign and the layers of the heads are torchvision's; the cascade is written here, with the
settings that the paper's authors published. Each stage refines the boxes of the one before and is trained on the ones
that overlap an object by more: three box heads of four 3×3 convolutions with batch norms and a linear layer, boxes for
each class, trained by the generalised IoU; three mask heads of four convolutions. In testing the logits of the classes
are averaged over the stages, the boxes are the last one's, and so are masks' probabilities averaged.

Shapes: N pictures, R regions of all pictures, K classes (background is class K), C channels, M = 28 a mask's side.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import _utils as parts
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import (
    MultiScaleRoIAlign,
    batched_nms,
    box_iou,
    clip_boxes_to_image,
    generalized_box_iou_loss,
)
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from replk_lightning.models import ModelError
from replk_lightning.models.pyramid import Pyramid, Resize

STRIDES = (4, 8, 16, 32)
ANCHORS = ((32,), (64,), (128,), (256,), (512,))
"""Side of a square anchor at each level: eight times its stride."""
RATIOS = (0.5, 1.0, 2.0)

IOUS = (0.5, 0.6, 0.7)
"""Least overlap of a positive region with its object, stage by stage."""
CODES = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
"""What a box's offsets are multiplied by, stage by stage: a later stage corrects less."""
STAGE_WEIGHTS = (1.0, 0.5, 0.25)
BOX_WEIGHT = 10.0
POSITIVE_SHARE = 0.25
"""Of the regions that a box head is trained on, at most."""

Targets = list[dict[str, Tensor]]
Features = dict[str, Tensor]
Sizes = list[tuple[int, int]]


class BoxHead(nn.Module):
    """Regions (R, C, 7, 7) → logits (R, K + 1) and box offsets (R, 4 K), four for each class."""

    def __init__(self, channels: int, convs: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.trunk = FastRCNNConvFCHead((channels, 7, 7), [channels] * convs, [width], norm_layer=nn.BatchNorm2d)
        self.classes = nn.Linear(width, num_classes + 1)
        self.boxes = nn.Linear(width, 4 * num_classes)
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.boxes.weight, std=0.001)
        nn.init.zeros_(self.classes.bias)
        nn.init.zeros_(self.boxes.bias)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """(R, C, 7, 7) → (R, K + 1), (R, 4 K)."""
        hidden = self.trunk(regions)
        return self.classes(hidden), self.boxes(hidden)


class MaskHead(nn.Sequential):
    """Regions (R, C, 14, 14) → logits of a mask for each class (R, K, 28, 28)."""

    def __init__(self, channels: int, convs: int, num_classes: int) -> None:
        super().__init__(
            MaskRCNNHeads(channels, [channels] * convs, dilation=1), MaskRCNNPredictor(channels, channels, num_classes)
        )


class Sample(NamedTuple):
    """The regions of one picture that a stage is trained on.

    Attributes:
        boxes: (R, 4).
        labels: int64 (R,); K for the background.
        objects: int64 (R,): the object that a region overlaps most; 0 in a picture without objects.
        is_object: bool (R,): the region is an object's own box, put among the proposals.
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor
    is_object: Tensor


class CascadeHeads(nn.Module):
    """The three stages behind the proposals; torchvision's `GeneralizedRCNN` calls them its `roi_heads`.

    Args:
        num_classes: K.
        channels: C of the pyramid and of every convolution.
        head_convs: convolutions of each head.
        fc: width of a box head's linear layer.
        rois: regions of a picture that each stage is trained on.
        detections: of a picture, at most.
    """

    def __init__(self, num_classes: int, channels: int, head_convs: int, fc: int, rois: int, detections: int) -> None:
        super().__init__()
        levels = [str(index) for index in range(len(STRIDES))]
        self.box_pool = MultiScaleRoIAlign(levels, 7, sampling_ratio=0)
        self.mask_pool = MultiScaleRoIAlign(levels, 14, sampling_ratio=0)
        self.box_heads = nn.ModuleList(BoxHead(channels, head_convs, fc, num_classes) for _ in IOUS)
        self.mask_heads = nn.ModuleList(MaskHead(channels, head_convs, num_classes) for _ in IOUS)
        self.coders = [parts.BoxCoder(code) for code in CODES]
        self.matchers = [parts.Matcher(iou, iou) for iou in IOUS]
        self.sampler = parts.BalancedPositiveNegativeSampler(rois, POSITIVE_SHARE)
        self.num_classes = num_classes
        self.score_threshold, self.nms_threshold, self.detections = 0.05, 0.5, detections

    def forward(
        self, features: Features, proposals: list[Tensor], sizes: Sizes, targets: Targets | None = None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of every picture, or in training the losses; the other one is empty.

        Args:
            features: the pyramid's maps by name.
            proposals: boxes (R_n, 4) of each picture, in pixels.
            sizes: height and width of each picture before padding.
            targets: `boxes` float32 (n, 4), `labels` int64 (n,) below K, `masks` uint8 (n, H, W); for training.

        Raises ModelError for targets without masks.
        """
        if targets is not None and self.training:
            if any("masks" not in target for target in targets):
                raise ModelError(
                    "Cascade Mask R-CNN trains with masks, which these targets lack: give them, or use FCOS."
                )
            return [], self._losses(features, proposals, sizes, targets)
        return self._detect(features, proposals, sizes), {}

    def _losses(self, features: Features, boxes: list[Tensor], sizes: Sizes, targets: Targets) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for stage, weight in enumerate(STAGE_WEIGHTS):
            samples = [self.sample(stage, *pair) for pair in zip(boxes, targets, strict=True)]
            regions = self.box_pool(features, [sample.boxes for sample in samples], sizes)
            logits, offsets = self.box_heads[stage](regions)
            labels = torch.cat([sample.labels for sample in samples])
            decoded = self.decode(stage, offsets, torch.cat([sample.boxes for sample in samples]))
            classification, box = box_losses(logits, decoded, labels, _matched_boxes(samples, targets))
            losses[f"classes_{stage}"], losses[f"boxes_{stage}"] = weight * classification, weight * BOX_WEIGHT * box
            losses[f"masks_{stage}"] = weight * self._mask_loss(stage, features, samples, sizes, targets)
            likely = torch.where(labels < self.num_classes, labels, logits[:, :-1].argmax(dim=1))
            refined = _of_class(decoded.detach(), likely).split([len(sample.boxes) for sample in samples])
            boxes = [
                clip_boxes_to_image(new[~sample.is_object], size)
                for new, sample, size in zip(refined, samples, sizes, strict=True)
            ]
        return losses

    @torch.no_grad()
    def sample(self, stage: int, boxes: Tensor, target: dict[str, Tensor]) -> Sample:
        """Draw the regions that `stage` is trained on from boxes (R, 4) and the objects of one picture."""
        truth = target["boxes"].to(boxes.dtype)
        boxes = torch.cat([boxes, truth])
        if len(truth):
            matched = self.matchers[stage](box_iou(truth, boxes))
        else:
            matched = torch.full((len(boxes),), parts.Matcher.BELOW_LOW_THRESHOLD, device=boxes.device)
        (positive,), (negative,) = self.sampler([(matched >= 0).long()])
        drawn = (positive | negative).nonzero().flatten()
        objects = matched[drawn].clamp(min=0)
        labels = torch.full_like(objects, self.num_classes)
        if len(truth):
            labels = torch.where(matched[drawn] >= 0, target["labels"][objects], labels)
        return Sample(boxes[drawn], labels, objects, drawn >= len(boxes) - len(truth))

    def decode(self, stage: int, offsets: Tensor, boxes: Tensor) -> Tensor:
        """Offsets (R, 4 K) from boxes (R, 4) → boxes (R, K, 4)."""
        return self.coders[stage].decode_single(offsets, boxes).view(len(boxes), self.num_classes, 4)

    def _mask_loss(
        self, stage: int, features: Features, samples: list[Sample], sizes: Sizes, targets: Targets
    ) -> Tensor:
        positive = [sample.labels < self.num_classes for sample in samples]
        boxes = [sample.boxes[chosen] for sample, chosen in zip(samples, positive, strict=True)]
        logits: Tensor = self.mask_heads[stage](self.mask_pool(features, boxes, sizes))
        if not len(logits):
            return logits.sum()
        labels = torch.cat([sample.labels[chosen] for sample, chosen in zip(samples, positive, strict=True)])
        truth = [
            project_masks_on_boxes(target["masks"], kept, sample.objects[chosen], logits.shape[-1])
            for target, kept, sample, chosen in zip(targets, boxes, samples, positive, strict=True)
            if len(kept)
        ]
        return F.binary_cross_entropy_with_logits(_of_class(logits, labels), torch.cat(truth))

    def _detect(self, features: Features, boxes: list[Tensor], sizes: Sizes) -> list[dict[str, Tensor]]:
        counts = [len(each) for each in boxes]
        total: Tensor | float = 0.0
        for stage, head in enumerate(self.box_heads):
            logits, offsets = head(self.box_pool(features, boxes, sizes))
            total = total + logits
            decoded = self.decode(stage, offsets, torch.cat(boxes))
            likely = _of_class(decoded, logits[:, :-1].argmax(dim=1)).split(counts)
            boxes = [clip_boxes_to_image(each, size) for each, size in zip(likely, sizes, strict=True)]
        assert isinstance(total, Tensor)
        scores = (total / len(self.box_heads)).softmax(dim=1)[:, :-1].split(counts)
        found = [self.select(*each) for each in zip(scores, decoded.split(counts), sizes, strict=True)]
        self._add_masks(features, found, sizes)
        return found

    def select(self, scores: Tensor, boxes: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Detections of one picture from scores (R, K) and boxes (R, K, 4): those that no better one suppresses."""
        region, label = (scores > self.score_threshold).nonzero(as_tuple=True)
        score, box = scores[region, label], clip_boxes_to_image(boxes[region, label], size)
        kept = batched_nms(box, score, label, self.nms_threshold)[: self.detections]
        return {"boxes": box[kept], "scores": score[kept], "labels": label[kept]}

    def _add_masks(self, features: Features, found: list[dict[str, Tensor]], sizes: Sizes) -> None:
        regions = self.mask_pool(features, [each["boxes"] for each in found], sizes)
        labels = torch.cat([each["labels"] for each in found])
        masks = torch.stack([_of_class(head(regions), labels).sigmoid() for head in self.mask_heads]).mean(dim=0)
        for each, mask in zip(found, masks[:, None].split([len(each["labels"]) for each in found]), strict=True):
            each["masks"] = mask


def box_losses(logits: Tensor, decoded: Tensor, labels: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of all regions, and the generalised IoU loss of the positive ones over the number of all.

    Args:
        logits: (R, K + 1).
        decoded: boxes (R, K, 4) for each class.
        labels: (R,); K for the background.
        truth: (R, 4): the objects' boxes; only the positive regions' are looked at.
    """
    classes = F.cross_entropy(logits, labels)
    positive = labels < decoded.shape[1]
    boxes = _of_class(decoded[positive], labels[positive])
    return classes, generalized_box_iou_loss(boxes, truth[positive], reduction="sum") / max(1, len(labels))


def _of_class(values: Tensor, labels: Tensor) -> Tensor:
    """Values (R, K, …) and labels (R,) → the labels' values (R, …)."""
    return values[torch.arange(len(labels), device=labels.device), labels]


def _matched_boxes(samples: list[Sample], targets: Targets) -> Tensor:
    truth = []
    for sample, target in zip(samples, targets, strict=True):
        has_any = len(target["boxes"]) > 0
        truth.append(target["boxes"][sample.objects] if has_any else torch.zeros_like(sample.boxes))
    return torch.cat(truth)


def create_cascade_mask_rcnn(
    model: str,
    num_classes: int,
    *,
    in_chans: int = 3,
    channels: int = 256,
    head_convs: int = 4,
    fc: int = 1024,
    proposals: tuple[int, int] = (2000, 1000),
    rois: int = 512,
    train_sizes: tuple[int, ...] = tuple(range(480, 801, 32)),
    test_size: int = 800,
    max_size: int = 1333,
    detections: int = 100,
    **options: Any,
) -> GeneralizedRCNN:
    """Cascade Mask R-CNN on the timm net called `model`; the arguments are those of `recipes.detect.DetectRecipe`.

    Images and targets as for `fcos.create_fcos`, targets with `masks`, uint8 (n, H, W); detections have `masks`,
    float32 (n, 1, H, W), probabilities. `options` go to timm. Raises ModelError for a net without maps of strides 4 to
    32.
    """
    pyramid = Pyramid(model, STRIDES, channels, LastLevelMaxPool(), in_chans=in_chans, **options)
    anchors = AnchorGenerator(ANCHORS, (RATIOS,) * len(ANCHORS))
    counts = dict(zip(("training", "testing"), proposals, strict=True))
    rpn = RegionProposalNetwork(
        anchors,
        RPNHead(channels, len(RATIOS)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n=counts,
        post_nms_top_n=counts,
        nms_thresh=0.7,
    )
    heads = CascadeHeads(num_classes, channels, head_convs, fc, rois, detections)
    for part in (rpn, heads):
        for layer in part.modules():
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # else the layer before it takes no full backward hook
    return GeneralizedRCNN(pyramid, rpn, heads, Resize(train_sizes, test_size, max_size))

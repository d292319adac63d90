"""The effective receptive field of a network: which pixels its central features depend on (Sec. 5.1, Appendix B).

A random network's field is not that of the trained one: draw it only under that label. Inputs should be real pictures
at the size the field is looked at (the paper: 50 validation images of ImageNet resized to 1024×1024).
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import timm
import torch
from PIL import Image
from timm.layers import Format, nhwc_to
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import replk_lightning.models  # noqa: F401  (registers the models)
from replk_lightning.data.scenes import GROUNDS, TEXTURES, photograph

THRESHOLDS = (0.2, 0.3, 0.5, 0.99)
"""Table 10's t."""


class FieldError(ValueError):
    """A field cannot be measured; the message is one sentence that says why."""


def contribution(
    model: nn.Module | str,
    images: Iterable[Tensor],
    *,
    reduce: Literal["sum", "mean"] = "sum",
    relu: bool = False,
    before_norm: bool = True,
    progress: bool = False,
) -> np.ndarray:
    """The contribution scores A of Eq. 1 and 2, divided by their largest entry.

    Args:
        model: a module that has timm's `forward_features` or gives a feature map itself, evaluated on its own device
            and in its own dtype, autocast or not; or a timm name, which is built with its pretrained weights. Maps of
            layout NHWC are known by timm's `output_fmt`, and tokens are laid out by its `forward_intermediates`.
        images: normalised pictures (3, H, W) or batches (N, 3, H, W), all of one size; they pass one at a time, so
            memory is bounded by one picture. Those that give NaN are named in a warning and skipped.
        reduce: over pictures: the paper's sum, or the official release's mean. The logarithm makes them differ.
        relu: take the ReLU of the central features before they are summed, as the official release does; the paper's
            Eq. 1 takes none.
        before_norm: take the map that enters the net's last layer, where that is a `norm` as in RepLKNet and Swin: the
            official release's map, which `deploy(model)` has too, at half the time. False takes the map after it.
        progress: show a bar.

    Returns:
        float64 (H, W) in [0, 1].

    Raises:
        FieldError: no picture gave finite scores, or the model gives no feature map, or one in another layout.
    """
    net = timm.create_model(model, pretrained=True) if isinstance(model, str) else model
    total, count = positive_gradients(
        net, tqdm(_singles(images), unit="image", disable=not progress), relu, before_norm
    )
    if total is None:
        raise FieldError("no image gave finite contributions: give some, and check the weights and the normalisation.")
    if reduce == "mean":
        total = total / count
    return scores_of(total)


def scores_of(total: Tensor) -> np.ndarray:
    """The scores A of Eq. 2, divided by their largest entry, of a sum of `positive_gradients`: float64 (H, W)."""
    scores = torch.log10(total + 1)
    found: np.ndarray = (scores / scores.max().clamp_min(torch.finfo(scores.dtype).tiny)).numpy()
    return found


def positive_gradients(
    net: nn.Module, images: Iterable[Tensor], relu: bool = False, before_norm: bool = True
) -> tuple[Tensor | None, int]:
    """Sum of `positive_gradient` over pictures (1, 3, H, W), None without any, and how many pictures gave one.

    The net is evaluated; its mode, its parameters' gradients and autocast are left as they are.
    """
    like = next(net.parameters(), torch.empty(0, device="cpu", dtype=torch.float32))
    total: Tensor | None = None
    count = 0
    with frozen(net), torch.inference_mode(False), torch.autocast(like.device.type, enabled=False):
        for index, image in enumerate(images):
            scores = positive_gradient(net, image.to(like), relu, before_norm)
            if not (image.isfinite().all() and scores.isfinite().all()):  # ReLU's gradient may hide a NaN
                warnings.warn(f"image {index} or its contributions are NaN or infinite: skipped", stacklevel=3)
                continue
            total = scores if total is None else total + scores
            count += 1
    return total, count


def positive_gradient(net: nn.Module, image: Tensor, relu: bool = False, before_norm: bool = True) -> Tensor:
    """P of Eq. 1 for one picture (1, 3, H, W), summed over its channels: float64 (H, W) on the CPU."""
    image = image.detach().clone().requires_grad_()
    with torch.enable_grad():
        features = _feature_map(net, image, before_norm)
        centre = features[:, :, features.shape[2] // 2, features.shape[3] // 2]
        (gradient,) = torch.autograd.grad((F.relu(centre) if relu else centre).sum(), image)
    return gradient[0].cpu().double().clamp_min(0).sum(0)


def _feature_map(net: nn.Module, image: Tensor, before_norm: bool) -> Tensor:
    """The last map (1, C, h, w) of `net`, whatever its layout; raises FieldError if it gives none."""
    entered: list[Tensor] = []
    norm = getattr(net, "norm", None) if before_norm and hasattr(net, "forward_features") else None
    hook = norm.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0])) if norm is not None else None
    try:
        features = getattr(net, "forward_features", net)(image)
    finally:
        if hook is not None:
            hook.remove()
    if entered and isinstance(features, Tensor):
        features = _laid_as(entered[-1], features)
    if isinstance(features, Tensor) and features.ndim == 3 and hasattr(net, "forward_intermediates"):
        laid_out = {"output_fmt": "NCHW", "intermediates_only": True}
        intermediates: Any = net.forward_intermediates
        tokens: Tensor = intermediates(image, indices=1, norm=not before_norm, **laid_out)[-1]
        return tokens
    if not isinstance(features, Tensor) or features.ndim != 4:
        raise FieldError(f"{type(net).__name__} gives no feature map (N, C, H, W): pass a module that does.")
    nhwc = Format(getattr(net, "output_fmt", Format.NCHW)) == Format.NHWC
    features = nhwc_to(features, Format.NCHW) if nhwc else features
    high, wide = (pixels / size for pixels, size in zip(image.shape[2:], features.shape[2:], strict=True))
    if max(high, wide) > 2 * min(high, wide):  # torchvision's Swin Transformers
        raise FieldError(
            f"{type(net).__name__} gives a map {tuple(features.shape)} of other sides than the picture's: pass a "
            "module that gives (N, C, H, W)."
        )
    return features


def _laid_as(entered: Tensor, left: Tensor) -> Tensor:
    """The map that entered a norm in the layout of the one that left the net: NesT turns maps around its norm."""
    turned = [entered, *(entered.permute(order) for order in ((0, 3, 1, 2), (0, 2, 3, 1)) if entered.ndim == 4)]
    return next((each for each in turned if each.shape == left.shape), entered)


def area_ratio(matrix: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> list[float]:
    """The high-contribution area ratio r of each threshold t in [0, 1) (Table 10).

    r is the area, over that of `matrix` (H, W), of the smallest square of odd side around the centre (H // 2, W // 2)
    that holds more than t of the sum of all entries; 1 where no square inside the matrix does.
    """
    shares = square_shares(matrix)
    sides = [int(np.searchsorted(shares, t, side="right")) for t in thresholds]  # the first share above t
    return [(2 * i + 1) ** 2 / matrix.size if i < len(shares) else 1.0 for i in sides]


def square_shares(matrix: np.ndarray) -> np.ndarray:
    """Share of the sum of `matrix` (H, W) inside the centred square of side 2i + 1, for every i that fits; float64."""
    rows, columns = (np.abs(np.arange(length) - length // 2) for length in matrix.shape)
    ring = np.maximum(rows[:, None], columns[None, :])  # the i at which an entry comes in
    sums = np.bincount(ring.ravel(), weights=matrix.ravel().astype(np.float64))
    shares: np.ndarray = np.cumsum(sums) / sums.sum()
    return shares[: (min(matrix.shape) + 1) // 2]


def photographs(size: int, mean: Sequence[float] | float, std: Sequence[float] | float) -> Iterator[Tensor]:
    """The fifteen real pictures of `scenes`, squeezed to (3, size, size) and normalised."""
    for name in (*TEXTURES, *GROUNDS):
        squeezed = Image.fromarray(photograph(name)).resize((size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(squeezed) / np.float32(255)
        yield torch.from_numpy((pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)).permute(2, 0, 1)


def _singles(images: Iterable[Tensor]) -> Iterator[Tensor]:
    for batch in images:
        yield from (batch if batch.ndim == 4 else batch[None]).split(1)


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients of the parameters, whose inputs then need not be kept; undone at the end."""
    training = [module for module in net.modules() if module.training]
    learning = [parameter for parameter in net.parameters() if parameter.requires_grad]
    net.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in learning:
            parameter.requires_grad_(True)

"""What a net found in a picture, drawn over it.

Pictures are uint8 (3, H, W). Each class has its own colour, the same in every picture.
"""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

ALPHA = 0.5
"""Share of the class's colour in a pixel that belongs to it."""

GOLDEN = 0.618034
"""Multiples of the golden ratio never come close to each other on the circle of hues."""

Colour = tuple[int, int, int]


def colour_of(label: int) -> Colour:
    """Colour of a class; classes in a row differ in hue, and every eighth is paler or darker."""
    saturation, value = ((0.85, 0.95), (0.5, 1.0), (0.9, 0.65))[label // 8 % 3]
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_classes(picture: Tensor, classes: Tensor, names: Sequence[str] | None = None) -> Tensor:
    """The picture with every pixel tinted by its class, int64 (H, W), and each class's name at the heart of it."""
    labels = classes.unique().tolist()
    for label in labels:
        picture = draw_segmentation_masks(picture, classes == label, ALPHA, [colour_of(label)])
    return picture if names is None else _write(picture, [(names[label], heart(classes == label)) for label in labels])


def heart(mask: Tensor) -> tuple[int, int]:
    """Column and row of the mask's pixel (H, W) that is closest to the middle of all."""
    pixels = mask.nonzero().float()
    row, column = pixels[(pixels - pixels.mean(0)).square().sum(1).argmin()].int().tolist()
    return column, row


def _write(picture: Tensor, titles: Sequence[tuple[str, tuple[int, int]]]) -> Tensor:
    image = to_pil_image(picture)
    draw, font = ImageDraw.Draw(image), ImageFont.truetype(_font(), max(8, max(image.size) // 40))
    for text, place in titles:
        draw.text(place, text, "white", font, anchor="mm", stroke_width=1, stroke_fill="black")
    return pil_to_tensor(image)


def draw_objects(picture: Tensor, found: dict[str, Tensor], names: Sequence[str] | None = None) -> Tensor:
    """The picture with a box around each object, its class (a name, or a number) and score, and its mask if any.

    Args:
        found: `boxes` (n, 4), `labels` (n,), `scores` (n,), and perhaps `masks` uint8 (n, H, W).
    """
    found = {name: values.flip(0) for name, values in found.items()}  # the surest comes first and is drawn on top
    labels = found["labels"].tolist()
    if not labels:
        return picture
    colours = [colour_of(label) for label in labels]
    # torchvision blackens pixels of two masks of one call
    for mask, colour in zip(found.get("masks", ()), colours, strict=False):
        picture = draw_segmentation_masks(picture, mask.bool(), ALPHA, [colour])
    titles = [names[label] for label in labels] if names else labels
    side = max(picture.shape[-2:])
    return draw_bounding_boxes(
        picture,
        found["boxes"],
        [f"{title} {score:.2f}" for title, score in zip(titles, found["scores"].tolist(), strict=True)],
        [*colours],
        width=max(1, side // 300),
        font=_font(),
        font_size=max(8, side // 40),
        label_colors=["black" if _is_light(colour) else "white" for colour in colours],
        fill_labels=True,
    )


def _is_light(colour: Colour) -> bool:
    return float(torch.tensor(colour).float() @ torch.tensor([0.299, 0.587, 0.114])) > 140


def _font() -> str:
    from matplotlib import get_data_path

    return str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")

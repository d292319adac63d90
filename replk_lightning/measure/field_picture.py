"""A picture of one effective receptive field, in the style of Figure 1: dark is much."""

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure


def draw_field(matrix: np.ndarray, title: str, ratios: Mapping[str, float]) -> bytes:
    """PNG of contribution scores (H, W) in [0, 1], over a line with the area ratio r of each threshold t."""
    figure = Figure(figsize=(4.6, 4.4), dpi=160, layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(matrix, cmap="YlGnBu", vmin=0, vmax=1)
    height, width = matrix.shape
    caption = ",  ".join(f"{100 * ratio:.2g} % ({float(t):.0%})" for t, ratio in ratios.items())
    axis.set(xticks=[0, width - 1], yticks=[0, height - 1])
    axis.set_title(title, fontsize=8, wrap=True)
    axis.set_xlabel(f"area r that holds more than t of it, r (t):\n{caption}", fontsize=7)
    figure.colorbar(image, ax=axis, label="contribution, largest = 1", shrink=0.7)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()

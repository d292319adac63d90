"""Shape bias of the large kernels since: how often their nets decide by shape where texture says another thing.

An addition to the paper: the rows of `since`, at the same cost, trained and measured as Figure 5's nets are.

Cost: `python -m ablations.run since_shape` at `small`: not measured yet.
"""

from collections.abc import Callable, Iterator

from ablations.spec import Row, ablation
from ablations.tables.figure5 import AGREEING, BIAS, EITHER, measure_bias
from ablations.tables.since import LAYERS, ORDER, SHAPE_SCALES, rows, since


@ablation(recipe=since.recipe, metrics=(BIAS, EITHER, AGREEING), measure=measure_bias, scales=SHAPE_SCALES)
def since_shape() -> Iterator[Row]:
    """The rows of `since`."""
    yield from rows()


def leads_in_shape(name: str) -> Callable[[dict[str, float]], float]:
    """Points of shape bias by which a row is ahead of RepLKNet-31."""
    return lambda shape_bias: shape_bias[name] - shape_bias["replk"]


for name in ORDER[1:]:
    title = LAYERS[name].title
    since_shape.claim(f"{title}: decides by shape more often than RepLKNet-31 of its cost")(leads_in_shape(name))

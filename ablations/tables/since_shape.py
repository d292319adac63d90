"""Shape bias of the large kernels since: how often their nets decide by shape where texture says another thing.

An addition to the paper: the rows of `since`, at the same cost, trained and measured as Figure 5's nets are.

Cost: `python -m ablations.run since_shape` at `small`: not measured yet.
"""

from collections.abc import Callable, Iterator

from ablations.spec import Number, Row, ablation
from ablations.tables.figure5 import AGREEING, BIAS, EITHER, measure_bias
from ablations.tables.since import ORDER, SHAPE_SCALES, least_lead, rows, short, since


@ablation(recipe=since.recipe, metrics=(BIAS, EITHER, AGREEING), measure=measure_bias, scales=SHAPE_SCALES)
def since_shape() -> Iterator[Row]:
    """The rows of `since`."""
    yield from rows()


def leads_in_shape(name: str) -> Callable[[dict[str, float]], float]:
    """Points of shape bias by which a row is ahead of RepLKNet-31."""
    return lambda shape_bias: shape_bias[name] - shape_bias["replk"]


@since_shape.claim(
    "RepLKNet-31 decides by shape more often than every other layer of its cost",
    Number(
        "shape bias of RepLKNet-31 less the largest of another layer (points)",
        lambda shape_bias: least_lead(shape_bias),
    ),
)
def replknet_sees_shape(shape_bias: dict[str, float]) -> float:
    """The paper's explanation (Sec. 5.2) carried to other layers."""
    return least_lead(shape_bias)


for name in ORDER[1:]:
    since_shape.claim(f"{short(name)} decides by shape more often than RepLKNet-31 of its cost")(leads_in_shape(name))

"""The layers since are compared at one cost, and every one of them is."""

import pytest

from ablations.scales import get_scale
from ablations.spec import MIOU, TOP1
from ablations.tables.since import ORDER, SIZES, since, sizes_of
from ablations.tables.since_shape import since_shape
from replk_lightning.measure.complexity import complexity
from replk_lightning.measure.latency import spatial_seconds
from replk_lightning.models.spatial import spatial_layers
from replk_lightning.models.spatial.cost import replknet_multiply_adds


def test_every_layer_is_a_row_and_the_extremes_are_last():
    assert {row.key for row in since.rows} == {row.key for row in since_shape.rows} == set(spatial_layers())
    assert since.rows[0].key == "replk"
    assert [row.key for row in since.rows][-2:] == ["none", "global"]


@pytest.mark.parametrize("scale", SIZES)
def test_all_rows_cost_what_replknet_31_does(scale):
    dims, depths, side, _ = SIZES[scale]
    target = replknet_multiply_adds("replk", dims, depths, side, **sizes_of("replk"))
    for row in since.rows:
        options = get_scale(scale, since).options_for(row)
        assert options.get("depths", depths) == depths
        cost = replknet_multiply_adds(row.key, options["dims"], depths, side, **sizes_of(row.key))
        assert abs(cost / target - 1) < 0.006, row.key


def test_replknet_31_has_its_own_widths_at_every_scale():
    for scale, (dims, *_) in SIZES.items():
        assert get_scale(scale, since).options_for(since.rows[0])["dims"] == dims


def test_cost_by_arithmetic_is_the_counted_one_where_no_tap_falls_on_padding():
    dims, depths, side, _ = SIZES["paper"]
    counted = complexity("replknet_31b", (3, side, side), folded=True, spatial="none", num_classes=0).macs
    assert replknet_multiply_adds("none", dims, depths, side, **sizes_of("none")) == counted


def test_a_claim_is_the_lead_over_replknet_31():
    top1 = {name: 50.0 + number for number, name in enumerate(ORDER)}
    values = {TOP1.key: top1, MIOU.key: {name: 2 * value for name, value in top1.items()}}
    best, *leads = (claim.margin(values) for claim in since.claims)
    assert leads == [lead * times for lead in range(1, len(ORDER)) for times in (1, 2)]
    assert best == since.headline.value(values) == 1 - len(ORDER)


def test_every_row_is_timed_with_our_operator_and_with_torchs():
    small = {"dims": (8, 8, 16, 16), "depths": (1, 1, 2, 1)}
    jobs = {key: ("replknet_13", 32, {**small, "spatial": key}) for key in ("replk", "none")}
    seconds = spatial_seconds(jobs, rounds=1)
    assert seconds.keys() == {(key, stock) for key in jobs for stock in (False, True)}
    assert all(each > 0 for each in seconds.values())

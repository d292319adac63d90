"""Ablations, claims and scales: what is missing is told from what is misspelt."""

from dataclasses import replace

import numpy as np
import pytest

from ablations.registry import all_ablations
from ablations.scales import PAPER, SCALES, SMALL, get_scale
from ablations.spec import TOP1, Claim, Number, Row, SpecError, ablation, least
from ablations.tables.guideline2 import guideline2
from ablations.tables.table5 import table5
from replk_lightning.recipes import fcos_2x, mobilenetv2_100ep

SWIN = "swin_tiny_patch4_window7_224"
TWO = {"top1": {"k3-plain": 94.0, "k13-plain": 90.0}}


def claim(margin, number=None):
    return Claim("the sentence", margin, guideline2, number and Number("label", number))


def ramp(ablation, down=False):
    """Different numbers for every row, up or down the table: a claim that stops early is seen from both sides."""
    keys = [row.key for row in ablation.rows]
    return {m.key: {key: n + 1.0 for n, key in enumerate(keys[:: -1 if down else 1])} for m in ablation.metrics}


@pytest.mark.parametrize("name", all_ablations())
def test_every_claim_names_rows_and_metrics_of_its_table(name):
    ablation = all_ablations()[name]
    for each in ablation.claims:
        for values in (ramp(ablation), ramp(ablation, down=True)):
            assert np.isfinite(each.margin(values)), each.sentence
            assert (each.value(values) is not None) == (each.number is not None), each.sentence


def test_a_known_number_that_is_missing_leaves_a_claim_undecided():
    assert claim(lambda top1: top1["k3-plain"] - top1["k13-plain"]).margin(TWO) == 4
    assert claim(lambda top1: top1["k3-plain"] - top1["k3-shortcut"]).margin(TWO) is None
    assert claim(lambda top1: top1["k3-plain"]).margin({}) is None
    assert claim(bool, lambda top1: top1["k13-shortcut"]).value(TWO) is None
    assert claim(bool).value(TWO) is None


@pytest.mark.parametrize(
    ("function", "wrong"),
    [
        (lambda top1: top1["k3-plian"], "guideline2 has no row 'k3-plian'; choose from k3-shortcut, "),
        (lambda miou: miou["k3-plain"], "guideline2 has no metric 'miou'; choose from top1"),
    ],
)
def test_a_claim_or_number_that_names_none_of_its_tables_rows_or_metrics_is_an_error(function, wrong):
    for evaluate in (claim(function).margin, claim(bool, function).value):
        for values in (TWO, {}):
            with pytest.raises(SpecError, match=f"the claim 'the sentence' cannot be decided: {wrong}"):
                evaluate(values)


def test_a_claims_own_mistake_is_not_taken_for_a_missing_number():
    with pytest.raises(KeyError):
        claim(lambda top1: {}[len(top1)]).margin(TWO)


@pytest.mark.parametrize("name", all_ablations())
def test_every_claim_takes_arrays_of_draws_and_gives_a_margin_for_each(name):
    ablation = all_ablations()[name]
    for each in ablation.claims:
        up, down = ramp(ablation), ramp(ablation, down=True)
        both = {metric: {row: np.array([up[metric][row], down[metric][row]]) for row in up[metric]} for metric in up}
        np.testing.assert_allclose(each.margin(both), [each.margin(up), each.margin(down)])


def test_conditions_are_joined_by_the_least_of_their_margins():
    assert least(2.0, -1.0, 3.0) == -1
    np.testing.assert_array_equal(least(np.array([2.0, 0.0]), np.array([1.0, 5.0])), [1, 0])


def test_a_gain_or_a_teacher_of_no_row_is_an_error():
    def rows():
        yield Row("a", "mobilenetv2_lk")
        yield Row("gain", "mobilenetv2_lk", trained=False, gain=("a", "b"))

    with pytest.raises(SpecError, match="rows has no row 'b'; choose from a, gain"):
        ablation(recipe=mobilenetv2_100ep, metrics=(TOP1,))(rows)


def test_a_family_that_a_scale_does_not_know_is_an_error():
    row = Row("swin", SWIN)
    for ask in (SMALL.options_for, SMALL.recipe_overrides_for, lambda row: guideline2.recipe_of(row, SMALL)):
        with pytest.raises(SpecError, match=rf"scale 'small' has no .* for the model '{SWIN}' of the family 'swin'; "):
            ask(row)
    assert guideline2.recipe_of(row, PAPER) == mobilenetv2_100ep()
    assert PAPER.options_for(row) == {}
    assert replace(SMALL, model_options={SWIN: {"depths": 1}}).options_for(row) == {"depths": 1}


def test_a_head_that_a_scale_does_not_know_is_an_error():
    row = Row("replknet3", "replknet_3", transfer=fcos_2x)
    with pytest.raises(SpecError, match="scale 'small' has no transfer for the head 'fcos' of the recipe 'fcos_2x'; "):
        table5.transfer_of(row, SMALL)
    assert table5.transfer_of(row, PAPER) == fcos_2x()
    assert table5.transfer_of(row, get_scale("small", table5)).epochs == 6


@pytest.mark.parametrize("name", all_ablations())
@pytest.mark.parametrize("scale", SCALES)
def test_every_row_that_is_trained_has_an_entry_in_every_scale(name, scale):
    for home in all_ablations()[name].homes:
        its = get_scale(scale, home)
        rows = [row for row in home.rows if (row.trained or home.measure) and not (row.published and its is not PAPER)]
        for row in rows:
            recipe, options = home.recipe_of(row, its), its.options_for(row)
            carried = home.transfer_of(row, its)
            assert (recipe.epochs < 10 and options) or its.as_printed
            assert carried is None or carried.epochs < 10 or its is PAPER


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_a_scale_times_rows_that_there_are(scale):
    for name, keys in (scale.timed or {}).items():
        assert all_ablations()[name].select(list(keys))

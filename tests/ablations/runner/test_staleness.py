from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ablations.records.fingerprint import GREY, data_fingerprints, model_fingerprint
from ablations.records.record import Record, read_records
from ablations.registry import get_ablation
from ablations.report.render import render_csv, render_markdown
from ablations.report.results import Results, Setting
from ablations.report.verdicts import verdict
from ablations.runner.profile import count
from ablations.runner.staleness import defined_by, staleness
from ablations.scales import DENSE, PAPER, SMALL
from ablations.tables.figure5 import figure5
from ablations.tables.guideline2 import guideline2
from ablations.tables.table5 import table5
from ablations.tables.table7 import table7
from replk_lightning.data import DATA, PHOTOGRAPHS, create_data, scenes
from replk_lightning.models import create_model

RESULTS = Path(__file__).resolve().parents[3] / "results"


def record(row="k13-plain", seed=0, top1=90.0, **changes):
    (spec,) = guideline2.select([row])
    base = Record(
        ablation="guideline2", row=row, kind="train", status="done", metrics={"top1": top1}, model="mobilenetv2_lk",
        options=SMALL.options_for(spec), recipe=asdict(guideline2.recipe_of(spec, SMALL)), scale="small",
        data="scenes-solid", seed=seed, hardware="a CPU",
        data_fingerprint=data_fingerprints()["scenes-solid"]["56"],
    )  # fmt: skip
    base = replace(base, model_fingerprint=defined_by(base))
    return replace(base, **changes)


def changes(of, *homes):
    return staleness(of, homes or (guideline2,))


def test_what_was_just_measured_is_current():
    assert changes(record()) == ()


def test_another_recipe_model_label_or_data_is_named():
    recipe = record().recipe
    assert changes(record(recipe={**recipe, "epochs": 6})) == ("epochs 6, now 3",)
    assert changes(record(options={**record().options, "width": 0.5}))[0] == "width 0.5, now 0.25"
    assert changes(record(model="mobilenetv2_100"))[0] == "model mobilenetv2_100, now mobilenetv2_lk"
    assert changes(record(supervision={"labelled": 0.1})) == ('labels {"labelled": 0.1}, now none',)
    assert changes(record(data_fingerprint="0" * 16)) == ("the data",)
    assert changes(record(model_fingerprint="0" * 16)) == ("the model's definition",)
    assert changes(record(), table5) == ("the row is gone",)
    no_entry = replace(guideline2, scales={"small": replace(SMALL, recipe={})})
    said = "scale 'small' has no recipe for the model 'mobilenetv2_lk' of the family 'mobilenetv2'"
    assert changes(record(), no_entry) == (said,)


def test_what_an_old_record_does_not_say_is_not_held_against_it():
    recipe = {name: value for name, value in record().recipe.items() if name != "mixup_switch_prob"}
    assert changes(record(recipe=recipe, model_fingerprint=None)) == ()
    needed = {name: value for name, value in record().recipe.items() if name != "warmup_epochs"}
    assert changes(record(recipe=needed)) == ("warmup_epochs none, now 0.5",)


def transfer(**changed):
    row = table7.rows[0]
    recipe = table7.transfer_of(row, DENSE)
    base = Record(
        ablation="table7", row=row.key, kind="transfer", status="done", metrics={"miou": 50.0}, model=row.model,
        options=DENSE.options_for(row), recipe=asdict(recipe), scale="small", data="scenes-solid-masks", seed=0,
        pretraining=asdict(table7.recipe_of(row, DENSE)),
        data_fingerprint=data_fingerprints()["scenes-solid-masks"]["96"],
    )  # fmt: skip
    return replace(replace(base, model_fingerprint=defined_by(base)), **changed)


def test_a_transfer_is_as_old_as_what_it_starts_from():
    assert changes(transfer(), table7) == ()
    before, recipe = transfer().pretraining, transfer().recipe
    old = transfer(pretraining={**before, "epochs": 99})
    assert changes(old, table7) == (f"pre-training's epochs 99, now {before['epochs']}",)
    assert changes(transfer(recipe={**recipe, "lr": 1.0}), table7) == (f"lr 1.0, now {recipe['lr']}",)


def test_weights_that_were_given_are_measured_as_they_are():
    row = figure5.rows[0]
    recipe = asdict(figure5.recipe_of(row, PAPER, given=True))
    assert recipe["epochs"] == 0
    where = {"ablation": "figure5", "row": row.key, "scale": "paper", "data": "imagenet-1k", "model_fingerprint": None}
    given = replace(record(), model=row.model, options={}, recipe=recipe, **where)
    assert changes(given, figure5) == ()
    assert changes(replace(given, recipe={**recipe, "epochs": 9}), figure5) == ("epochs 9, now 120",)


@pytest.mark.parametrize("name", sorted(DATA.keys() - PHOTOGRAPHS))
def test_a_net_is_built_with_its_datas_channels(name):
    assert create_data(name).in_chans == (1 if name in GREY else 3)


def test_a_net_is_known_by_its_weights_and_by_how_its_convolutions_step():
    def fingerprint(**options):
        with torch.device("meta"):
            return model_fingerprint(create_model("mobilenetv2_lk", width=0.25, **options))

    same = fingerprint(kernel_size=3)
    assert same == fingerprint(kernel_size=3)
    others = fingerprint(kernel_size=5), fingerprint(kernel_size=3, stem_stride=1), fingerprint(dilation=4)
    assert len({same, *others}) == 4
    assert model_fingerprint(nn.Conv2d(2, 2, 3)) != model_fingerprint(nn.Conv2d(2, 2, 3, padding=1))


def test_a_stale_number_is_marked_with_what_has_changed():
    values = {"k3-shortcut": 97.0, "k13-shortcut": 96.0, "k3-plain": 94.0, "k13-plain": 90.0}
    records = [record(row, seed, top1) for row, top1 in values.items() for seed in (0, 1)]
    assert "†" not in render_markdown(Results(guideline2, records))
    records[-1] = replace(records[-1], recipe={**records[-1].recipe, "lr": 1.0})
    results = Results(guideline2, records)
    table = render_markdown(results)
    assert "| 13×13, no shortcuts | 53.98 | 90.00 ± 0.00 † |" in table
    assert "| 3×3, no shortcuts | 68.67 | 94.00 ± 0.00 |" in table
    assert "† measured before this changed:\n\n- `k13-plain`, seed 1: lr 1.0, now 0.05" in table
    (setting,) = results.settings("train")
    assert str(verdict(guideline2.claims[0], results, setting)) == "fails (2 seeds)"
    # without the stale one there is but one seed, which gives no word
    assert str(verdict(guideline2.claims[1], results, setting)) == "holds (2 seeds) †"
    assert sum(line.endswith(",stale") for line in render_csv(results).splitlines()[1:]) == 1


def test_a_verdict_that_only_stale_numbers_give_is_marked():
    old = {**record().recipe, "lr": 1.0}
    results = Results(guideline2, [record("k3-plain", top1=94.0), record("k13-plain", recipe=old)])
    assert verdict(guideline2.claims[1], results, Setting("train", "small", "scenes-solid", "a CPU")).stale


@pytest.mark.parametrize(("name", "row"), [("table6", "replknet31b-224"), ("table11", "k13"), ("table8", "resnet101")])
def test_committed_counts_are_what_is_counted_now(name, row):
    ablation = get_ablation(name)
    (kept,) = [r for r in read_records(RESULTS / name / "runs") if r.row == row and r.kind == "count"]
    (spec,) = ablation.select([row])
    assert count(ablation, spec).metrics == pytest.approx(kept.metrics)


def test_every_committed_record_says_the_commit_it_ran_at():
    paths = {path.parent for path in RESULTS.glob("*/runs/*.json")}
    without = [r.filename for path in paths for r in read_records(path) if not r.commit]
    assert paths
    assert without == []


def test_the_digits_have_the_fingerprint_that_is_kept():
    assert create_data("mnist5k", image_size=32).fingerprint == data_fingerprints()["mnist5k"]["32"]
    assert scenes.VERSION == 2, "scenes have changed: run this file's slow test and keep what it computes"


@pytest.mark.slow
@pytest.mark.parametrize("name", data_fingerprints())
def test_every_set_has_the_fingerprint_that_is_kept(name):
    for side, kept in data_fingerprints()[name].items():
        assert create_data(name, image_size=int(side)).fingerprint == kept

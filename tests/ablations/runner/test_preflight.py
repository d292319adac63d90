"""What is told of runs before any of them is trained, to the command that stops at it and to the one that goes on."""

from dataclasses import replace
from pathlib import Path

import pytest

from ablations.runner.machine import Machine
from ablations.runner.plan import plan
from ablations.runner.preflight import preflight, require
from ablations.runner.scheduler import save
from ablations.runner.train import record_of
from ablations.scales import SMOKE, get_scale
from ablations.spec import Row, SpecError
from ablations.tables.guideline2 import guideline2
from ablations.tables.table6 import table6
from ablations.tables.table11 import table11
from replk_lightning.data.generated import Generated
from replk_lightning.models import ModelError

CPU = Machine(accelerator="cpu")
RESULTS = Path("results")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def planned(ablation, *keys):
    return plan(ablation, ablation.select(list(keys)), get_scale("smoke", ablation))


def said(runs):
    """What is found of each run: `recorded`, `missing`, or the error."""
    findings = {id(finding.run): finding for finding in preflight(runs, CPU, RESULTS)}
    found = (findings[id(run)] for run in runs)
    return ["recorded" if each.recorded else str(each.error) if each.error else "missing" for each in found]


def test_what_is_wrong_with_a_run_is_found_beside_what_can_be_trained():
    good, other = planned(guideline2, "k3-plain", "k13-plain")
    even = replace(good, row=Row("k4", "mobilenetv2_lk", kernel_size=4))
    (tuned,) = planned(table6, "replknet31b-384")
    elsewhere = replace(other, data="imagefolder:nowhere")
    first, second, third, fourth = said([even, good, tuned, elsewhere])
    assert "'kernel_size': 4" in first
    assert second == "missing"
    assert "give its checkpoint with python -m ablations.run table6 --init replknet31b-384=PATH" in third
    assert "no folder nowhere" in fourth
    with pytest.raises(SpecError, match="--init"):  # needs no data to be seen
        require(preflight([even, tuned, elsewhere], CPU, RESULTS))
    with pytest.raises(ModelError, match="'kernel_size': 4"):
        require(preflight([even, good], CPU, RESULTS))


def test_what_is_recorded_is_told_from_what_is_another_experiments():
    (run,) = planned(guideline2, "k3-plain")
    folder = RESULTS / guideline2.name
    record = record_of(run, run.make_data(), "a CPU", status="done", metrics={"top1": 50.0})
    save(record, run, folder, lambda: None)
    assert said([run]) == ["recorded"]
    longer = {"mobilenetv2": {**SMOKE.recipe["mobilenetv2"], "epochs": 2}}
    (sentence,) = said([replace(run, scale=replace(SMOKE, recipe=longer))])
    assert "was measured with another recipe, model or labels (epochs 1, now 2)" in sentence


def test_data_that_tables_share_are_read_once(monkeypatch):
    read, load = [], Generated.load

    def counted(data):
        read.append(data)
        return load(data)

    monkeypatch.setattr(Generated, "load", counted)
    runs = planned(guideline2, "k3-plain", "k13-plain") + planned(table11, "k9")
    assert said(runs) == ["missing"] * 3
    assert len(read) == 1


def test_flags_that_nothing_can_run_with_are_told_without_any_run():
    with pytest.raises(SpecError, match="starts no command of its own"):
        require(preflight([], Machine(strategy="ddp_spawn")))

"""Files that somebody else has written, or half of them: never a traceback."""

import json
import tomllib
import warnings
from contextlib import suppress
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ablations.paper import PAPER_TOML, paper_numbers
from ablations.records.record import Record, read_record, read_records
from ablations.report.render import render_csv, render_markdown
from ablations.report.results import Results
from ablations.spec import SpecError
from ablations.tables.guideline2 import guideline2
from replk_lightning.models.classifier import Classifier
from replk_lightning.models.weights import CheckpointError, load_official
from replk_lightning.tasks.classify import ClassifyTask
from replk_lightning.trainer.checkpoint_io import AtomicCheckpointIO, serialized, why_not_resume, why_unreadable

FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
RECORD = Record(
    ablation="guideline2", row="k3-plain", kind="train", status="done", metrics={"top1": 97.5}, model="mobilenetv2_lk",
    options={"kernel_size": 3}, scale="small", data="mnist5k", seed=0, hardware="a CPU",
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
FIELDS = st.sampled_from(sorted(asdict(RECORD)))


def read_quietly(path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is not a readable record.*")
        return read_record(path)


@FEW
@given(st.dictionaries(FIELDS | st.just("more"), VALUES, max_size=3), st.dictionaries(st.just("metrics"), VALUES))
def test_whatever_a_record_holds_it_is_ignored_or_can_be_shown(tmp_path, changes, metrics):
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**asdict(RECORD), **metrics, **changes}))
    record = read_quietly(path)
    if record is None:
        return
    others = [replace(record, seed=seed) for seed in (1, 2)]
    results = Results(guideline2, [RECORD, record, *others])
    assert render_markdown(results).encode()
    assert render_csv(results).encode()


@FEW
@given(st.binary(max_size=40) | st.text(alphabet='{}[]":,0', max_size=40).map(str.encode), st.integers(0, 700))
def test_a_torn_or_foreign_record_is_ignored(tmp_path, content, length):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    assert read_quietly(path) is None
    path.write_bytes(json.dumps(asdict(RECORD)).encode()[:length])
    assert read_quietly(path) in (None, RECORD)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": "0"}, "seed is '0', not a whole number"),
        ({"seed": True}, "seed is True, not a whole number"),
        ({"seed": None}, "has a scale, data and a seed"),
        ({"status": "finished"}, "status is 'finished', none of 'done', 'failed'"),
        ({"metrics": {"top1": "97"}}, "metrics.top1 is '97', not a number"),
        ({"metrics": {"top1": float("nan")}}, "metrics.top1 is nan, not a number"),
        ({"metrics": [1]}, "metrics is [1], not a table"),
        ({"schema": 99}, "schema 99; this version reads 1"),
        ({"surplus": 1}, "unexpected keyword argument 'surplus'"),
    ],
)
def test_a_wrong_type_is_one_sentence_and_the_other_records_are_read(tmp_path, change, said):
    (tmp_path / "wrong.json").write_text(json.dumps(asdict(RECORD) | change))
    (tmp_path / "right.json").write_text(json.dumps(asdict(RECORD)))
    with pytest.warns(UserWarning, match=r"wrong\.json is not a readable record") as caught:
        assert read_records(tmp_path) == [RECORD]
    (warning,) = caught
    assert said in str(warning.message)
    assert len(str(warning.message).splitlines()) == 1


def test_deeper_than_python_reads_is_ignored(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "folder.json").mkdir()
    with pytest.warns(UserWarning, match=r"is not a readable record"):
        assert read_records(tmp_path) == []


@FEW
@given(st.data())
def test_a_damaged_paper_toml_is_one_sentence_or_numbers(tmp_path, data):
    path, content = tmp_path / "paper.toml", bytearray(PAPER_TOML.read_bytes()[:2000])
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    paper_numbers.cache_clear()
    with suppress(SpecError):
        rows = [metrics for rows in paper_numbers(path).values() for metrics in rows.values()]
        assert all(isinstance(value, int | float) for metrics in rows for value in metrics.values())
    paper_numbers.cache_clear()


@pytest.mark.parametrize(
    "content",
    ["a = 1", "[a]\nb = 1", "[a.b]\nc = 'x'", "[a.b]\nc = true", "[a.b]\nc = [1]", "[a.b]\nc = inf", "a = {", "\udc80"],
)
def test_a_paper_toml_of_wrong_types_is_one_sentence(tmp_path, content):
    path = tmp_path / "paper.toml"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(SpecError) as caught:
        paper_numbers(path)
    assert len(str(caught.value).splitlines()) == 1
    assert "paper.toml" in str(caught.value)


def test_the_papers_own_numbers_pass():
    assert paper_numbers() == tomllib.loads(PAPER_TOML.read_text(encoding="utf-8"))


class Evil:
    """Opens a file when it is unpickled."""

    def __reduce__(self):
        return open, ("opened by a checkpoint", "w")


@pytest.fixture(scope="module")
def task():
    options = {"width": 0.1, "kernel_size": 3}
    recipe = {"resolution": 32}
    return ClassifyTask(
        "mobilenetv2_lk", "mobilenetv2_100ep", num_classes=4, in_chans=1, model_options=options, recipe_overrides=recipe
    )


@pytest.fixture(scope="module")
def checkpoint(task):
    parts = {name: [] for name in ("optimizer_states", "lr_schedulers")} | {name: {} for name in ("callbacks", "loops")}
    return {"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams), **parts}


def test_a_checkpoint_is_gone_on_from_only_if_all_of_it_is_right(tmp_path, task, checkpoint):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    assert why_not_resume(path, task) is None
    wrong = {
        "damaged": b"", "another experiment's": {**checkpoint, "hyper_parameters": {"model": "other"}},
        "another model": {**checkpoint, "state_dict": {"x": torch.zeros(1)}},
        "not a checkpoint": {"state_dict": checkpoint["state_dict"]}, "not a checkpoint of": [1],
    }  # fmt: skip
    for said, content in wrong.items():
        path.write_bytes(content if isinstance(content, bytes) else serialized(content))
        assert said in why_not_resume(path, task)


def test_no_code_in_a_checkpoint_runs(tmp_path, monkeypatch, task, checkpoint):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "last.ckpt"
    path.write_bytes(serialized({**checkpoint, "loops": Evil()}))
    assert "damaged (UnpicklingError)" in why_not_resume(path, task)
    with pytest.raises(Exception, match="Weights only load failed"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not (tmp_path / "opened by a checkpoint").exists()


@FEW
@given(st.data())
def test_any_damage_to_a_checkpoints_container_is_seen_or_harmless(tmp_path, task, checkpoint, data):
    whole, path = serialized(checkpoint), tmp_path / "last.ckpt"
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    if why_not_resume(path, task) is None:
        read = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.equal(value, read[name]) for name, value in checkpoint["state_dict"].items())
    assert why_unreadable(path) is None or why_not_resume(path, task)
    with suppress(CheckpointError):
        load_official(task.model, path)
    assert isinstance(task.model, Classifier)

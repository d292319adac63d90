import json
from dataclasses import replace

import pytest

from ablations.records.provenance import commit, hardware
from ablations.records.record import Record, read_record, read_records, write_record
from replk_lightning.atomic import write_atomically

RECORD = Record(
    ablation="guideline2", row="k3-plain", kind="train", status="done", metrics={"top1": 97.5}, model="mobilenetv2_lk",
    options={"kernel_size": 3}, scale="small", data="mnist5k", seed=0, hardware="a CPU",
)  # fmt: skip


def test_a_record_survives_the_disk(tmp_path):
    path = write_record(RECORD, tmp_path)
    assert path.name == "k3-plain.small.mnist5k.seed0.json"
    assert read_record(path) == RECORD


def test_file_names_tell_measurements_apart():
    others = [
        replace(RECORD, seed=1), replace(RECORD, scale="paper"), replace(RECORD, data="imagefolder:/data/x"),
        replace(RECORD, kind="count"), replace(RECORD, kind="timing"),
        replace(RECORD, kind="timing", hardware="another CPU"),
    ]  # fmt: skip
    names = {record.filename for record in [RECORD, *others]}
    assert len(names) == 7
    assert all("/" not in name and ":" not in name for name in names)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"row": 1}', json.dumps({"schema": 99})])
def test_a_damaged_record_is_named_and_ignored(tmp_path, damage):
    write_record(RECORD, tmp_path)
    (tmp_path / "broken.json").write_text(damage)
    with pytest.warns(UserWarning, match=r"broken\.json"):
        assert read_records(tmp_path) == [RECORD]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "table.md"
    write_atomically(path, "old")
    monkeypatch.setattr("replk_lightning.atomic.os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_hardware_and_commit_are_one_line():
    assert "\n" not in hardware("cpu")
    assert "threads" in hardware("cpu")
    assert commit() is None or len(commit()) in (12, 13)

"""Ablations that measure trained nets and draw figures."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from ablations import run as runner
from ablations.measures import EDGES
from ablations.records.record import Record, read_record, write_record
from ablations.report.plots import Panel, heat_maps, lines, save_figure, scatters
from ablations.report.render import rendered, stale
from ablations.runner.plan import plan
from ablations.runner.preflight import check_start
from ablations.scales import get_scale
from ablations.spec import SpecError
from ablations.tables.distance import distance
from ablations.tables.figure5 import figure5, measure_bias
from ablations.tables.table10 import _pictures, measure_field
from replk_lightning.data import create_data
from replk_lightning.data.scenes import compose
from replk_lightning.models import create_model
from replk_lightning.models.weights import CheckpointError, load_weights


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def smoke(name, *arguments):
    return runner.main([name, "--scale", "smoke", "--accelerator", "cpu", *arguments])


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_table10_trains_and_figure1_draws_its_records(capsys):
    keys = ["replknet31", "replknet31-random"]
    assert smoke("table10", "--rows", *keys) == 0
    runs = Path("runs/smoke/table10/runs")
    trained, random = (read_record(runs / f"{key}.smoke.generated.seed0.json") for key in keys)
    assert (trained.recipe["epochs"], random.recipe["epochs"]) == (1, 0)
    assert 0 < trained.metrics["r20"] <= trained.metrics["r99"] <= 100
    assert trained.metrics["r50"] != random.metrics["r50"] or trained.metrics != random.metrics

    capsys.readouterr()
    assert smoke("figure1", "--rows", *keys) == 0
    assert "2 runs, 2 of them recorded already" in capsys.readouterr().out
    folder = Path("runs/smoke/figure1")
    assert not (folder / "runs").exists()
    shares = [float(row["share"]) for row in rows_of(folder / "figure1.csv") if row["row"] == keys[0]]
    assert shares == sorted(shares)
    with Image.open(folder / "figure1.png") as picture:
        assert picture.width > 600
    assert stale(Path("runs/smoke")) == []
    (folder / "figure1.csv").write_text("row,side,share\n")
    assert stale(Path("runs/smoke")) == [folder / "figure1.csv"]


def test_given_weights_are_measured_and_not_trained(capsys):
    options = {"dims": (8, 16, 16, 16), "depths": (1, 1, 1, 1), "num_classes": 4}
    torch.manual_seed(7)
    net = create_model("replknet_31b", **options)
    torch.save(net.state_dict(), "given.pth")
    assert smoke("table10", "--rows", "replknet31", "--init", "replknet31=given.pth") == 0
    record = json.loads(Path("runs/smoke/table10/runs/replknet31.smoke.generated.seed0.json").read_text())
    assert record["recipe"]["epochs"] == 0
    expected = measure_field(net, create_data("generated")).metrics
    assert {key: record["metrics"][key] for key in expected} == pytest.approx(expected, abs=1e-3)


def test_figure6_shows_three_kernels():
    assert smoke("figure6") == 0
    folder = Path("runs/smoke/figure6")
    numbers = rows_of(folder / "figure6.csv")
    assert len(numbers) == 3 * 13 * 13
    assert max(float(row["weight"]) for row in numbers) == 1
    record = read_record(folder / "runs" / "k13-reparam.smoke.generated.seed0.json")
    merged = np.array([float(r["weight"]) for r in numbers if r["kernel"] == "merged"]).reshape(13, 13)
    assert record.metrics["central"] == pytest.approx(100 * merged[5:8, 5:8].sum() / merged.sum(), abs=0.01)


class Oracle(torch.nn.Module):
    """Decides by the texture of the first 500 test scenes and by the shape of the others."""

    def __init__(self, scenes):
        super().__init__()
        self.answers = iter(scenes)
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x):
        labels = torch.tensor([next(self.answers) for _ in x])
        return torch.nn.functional.one_hot(labels, 10).float()


def test_shape_bias_on_scenes_follows_the_decisions():
    conflict, agree = compose("test", 16, "conflict"), compose("test", 16, "agree")
    shapes, textures = conflict.classes[:, 0].tolist(), conflict.textures[:, 0].tolist()
    answers = agree.classes[:, 0].tolist() + textures[:2000] + shapes[2000:]
    measured = measure_bias(Oracle(answers), create_data("scenes-cue-conflict", image_size=16)).metrics
    by_class = {str(d): [shape == d and n >= 2000 for n, shape in enumerate(shapes)] for d in range(10)}
    for digit, decided in by_class.items():
        assert measured[f"shape_bias of {digit}"] == pytest.approx(100 * sum(decided) / 400)
    assert (measured["agreeing"], measured["either"]) == (100, 100)
    assert measured["shape_bias"] == pytest.approx(50)


def test_data_without_conflicts_give_no_bias():
    assert measure_bias(torch.nn.Identity(), create_data("generated")).metrics == {}


def test_figure5_draws_a_net(tmp_path, monkeypatch):
    # Fewer scenes, in a cache of their own: what is drawn needs no more.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("replk_lightning.data.scenes.TRAIN_SCENES", 400)
    monkeypatch.setattr("replk_lightning.data.scenes.TEST_SCENES", 100)
    assert smoke("figure5", "--rows", "replknet3") == 0
    assert {row["net"] for row in rows_of(Path("runs/smoke/figure5/figure5.csv"))} <= {"RepLKNet-3"}
    assert Path("runs/smoke/figure5/figure5.png").stat().st_size > 5000


def test_a_folder_gives_fifty_whole_images_at_1024(tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            Image.new("RGB", (30, 20), (250, 3, 3)).save(tmp_path / "set" / split / name / "1.png")
    data = create_data(f"imagefolder:{tmp_path / 'set'}", image_size=64)
    images = list(_pictures(data))
    assert len(images) == 50
    assert images[0].shape == (3, 1024, 1024)
    assert data.image_size == 64
    (tmp_path / "set/val/b/1.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="skipped unreadable"):
        assert len(list(_pictures(data))) == 49  # of two pictures the second is the last only


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        save_figure(heat_maps([Panel("a", np.eye(4), "b")] * 3, 2, "title", "label"), tmp_path / f"{name}.png")
        save_figure(scatters({"net": {"0": 0.3, "1": 0.5}}, ["0", "1"], "t", "l"), tmp_path / f"{name}-s.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one-s.png").read_bytes() == (tmp_path / "two-s.png").read_bytes()


def planned(scale):
    return plan(figure5, figure5.rows, get_scale(scale, figure5))


def test_the_papers_own_nets_are_measured_at_paper_with_given_weights():
    assert {run.row.key for run in planned("paper")} - {run.row.key for run in planned("small")} == {
        "replknet31-22k", "swin-b", "swin-b-22k", "resnet152"
    }  # fmt: skip
    swin = next(run for run in planned("paper") if run.row.key == "swin-b")
    with pytest.raises(SpecError, match=r"give its weights with python -m ablations\.run figure5 --init swin-b=PATH"):
        check_start(swin)
    assert replace(swin, init="given.pth").recipe.epochs == 0


def test_weights_of_a_net_of_timms_are_loaded_whole_or_told(tmp_path):
    saved, net = (timm.create_model("resnet10t", num_classes=5) for _ in range(2))
    torch.save(saved.state_dict(), tmp_path / "resnet.pth")
    load_weights(net, str(tmp_path / "resnet.pth"))
    assert torch.equal(net.fc.weight, saved.fc.weight)
    with pytest.raises(CheckpointError, match="does not fit the ResNet"):
        load_weights(timm.create_model("resnet18", num_classes=5), str(tmp_path / "resnet.pth"))


def test_distance_shows_what_tables_3_and_5_measure_of_the_nets_that_they_carry_over(capsys):
    keys = ["k3", "replknet3"]
    assert smoke("distance", "--rows", *keys) == 0
    said = capsys.readouterr().out
    assert "Addition to the paper." in said
    numbers = rows_of(Path("runs/smoke/distance/distance.csv"))
    for home, row in (("guideline3", "k3"), ("table5", "replknet3")):
        runs = Path("runs/smoke") / home / "runs"
        classified, carried = read_record(runs / f"{row}.smoke.generated.seed0.json"), *runs.glob(f"{row}.transfer.*")
        assert set(classified.metrics) == {"loss", "top1"}
        metrics = read_record(carried).metrics
        assert sum(metrics[f"share_{edge}"] for edge in EDGES) == pytest.approx(100, abs=1e-3)
        shown = {int(n["from"]): float(n["mIoU (%)"]) for n in numbers if n["row"] == row}
        assert shown == {edge: metrics[f"miou_{edge}"] for edge in EDGES}
        assert all(0 <= value <= 100 for value in shown.values())
    with Image.open("runs/smoke/distance/distance.png") as picture:
        assert picture.width > 600
    assert stale(Path("runs/smoke")) == []


def test_a_run_that_is_interrupted_while_it_is_measured_goes_on_with_that(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("replk_lightning.measure.distance.distance_to_outline", interrupt)
        assert smoke("guideline3", "--rows", "k3") == 130
    carried = "k3.transfer.smoke.scenes-masks.seed0"
    assert not Path(f"runs/smoke/guideline3/runs/{carried}.json").exists()
    checkpoint = Path(f"runs/guideline3/{carried}/last.ckpt").stat().st_mtime_ns
    monkeypatch.setattr("ablations.runner.scheduler.forget", lambda run: None)
    assert smoke("guideline3", "--rows", "k3") == 0
    assert Path(f"runs/guideline3/{carried}/last.ckpt").stat().st_mtime_ns == checkpoint  # nothing was trained again
    assert "miou_0" in read_record(Path(f"runs/smoke/guideline3/runs/{carried}.json")).metrics


def test_what_a_net_loses_inwards_is_compared_and_what_is_left_deep_inside():
    outlines = {"k3": 40.0, "k13-reparam": 50.0, "replknet3": 60.0, "replknet31": 60.0}
    inside = {"k3": 10.0, "k13-reparam": 35.0, "replknet3": 70.0, "replknet31": 68.0}
    margins = [claim.margin({"miou_0": outlines, "miou_16": inside}) for claim in distance.claims]
    assert margins == [15, 25, -2, -2]  # 30 less 15; −10 less −8
    assert distance.headline.value({"miou_16": inside}) == -2
    assert distance.claims[0].margin({"miou_0": outlines, "miou_16": {}}) is None  # nothing lies as deep


def test_records_from_before_there_were_bands_give_no_figure(tmp_path):
    fields = {"ablation": "guideline3", "row": "k3", "status": "done", "model": "mobilenetv2_lk", "seed": 0}
    for kind, data, metrics in (("train", "scenes", {"top1": 90.0}), ("transfer", "scenes-masks", {"miou": 60.0})):
        record = Record(**fields, kind=kind, data=data, metrics=metrics, options={}, scale="small", hardware="a CPU")
        write_record(record, tmp_path / "guideline3" / "runs")
    assert set(rendered(distance, tmp_path / "distance")) == {"table.md", "table.csv"}


def test_a_line_needs_no_value_at_every_place(tmp_path):
    panels = {"family (data)": {"3×3": [[1.0, 3.0], [2.0], []], "13×13": [[], [], []]}}
    figure = lines(panels, ["0–2", "2–4", "≥ 4"], "title", "x", "y")
    axis, empty = figure.axes
    assert not empty.axison
    assert [list(line.get_xdata()) for line in axis.get_lines() if line.get_marker() == "o"] == [[0, 1]]
    for name in ("one.png", "two.png"):
        save_figure(lines(panels, ["0–2", "2–4", "≥ 4"], "title", "x", "y"), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()

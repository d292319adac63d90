"""The pseudo-label command: labels against the teacher, damage, resumption, several processes, error sentences."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import datasets
import lightning as L
import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torchvision.transforms import functional as T

from replk_lightning.data import DataError
from replk_lightning.data.decoding import decode_rgb
from replk_lightning.data.label_shards import read_info, read_labels
from replk_lightning.data.multitask import Labelled, MultiTaskData, PseudoLabelled
from replk_lightning.data.pools import open_pool
from replk_lightning.pseudo_label import command, label, labelling, load_teacher
from replk_lightning.tasks.base import PIXELS
from replk_lightning.tasks.classify import ClassifyTask
from replk_lightning.tasks.multitask import MultiTaskClassify
from replk_lightning.tasks.segment import SegmentTask

ROOT = Path(__file__).resolve().parents[3]
TINY = {"width": 0.1, "stem_stride": 1, "output_stride": 8}
SHORT = {"resolution": 32, "epochs": 1}
TIMM = "test_resnet"  # timm's own toy, on 160² images
COUNT = 10


def save_checkpoint(task, path):
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", logger=False, **quiet)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path)
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A classifier of three classes as `fit` leaves it."""
    torch.manual_seed(0)
    task = ClassifyTask("mobilenetv2_lk", "mobilenetv2_100ep", 3, model_options=TINY, recipe_overrides=SHORT)
    return save_checkpoint(task, tmp_path_factory.mktemp("teacher") / "last.ckpt")


def segmenter():
    return SegmentTask("mobilenetv2_lk", "deeplabv3plus_cityscapes_80k", 4, model_options=TINY)


@pytest.fixture
def images(tmp_path):
    """Ten photographs in two class folders and below the root, one of which is damaged."""
    root = tmp_path / "images"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
    random = np.random.RandomState(0)
    for n in range(COUNT):
        folder = root / ("cat", "dog", "")[n % 3]
        Image.fromarray(random.randint(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{n}.jpg")
    (root / "dog/4.jpg").write_bytes((root / "dog/4.jpg").read_bytes()[:100])
    return root


def run(images, out, *arguments):
    return command.main(
        ["--images", str(images), "--out", str(out), "--device", "cpu", "--shard-size", "4", *arguments]
    )


def readable(images):
    return [path for path in sorted(str(p.relative_to(images)) for p in images.rglob("*.jpg")) if "4.jpg" not in path]


def teachers_view(teacher, path):
    with torch.inference_mode():
        return teacher.net(teacher.preparation.transform(decode_rgb(str(path)))[None]).softmax(1)[0]


@pytest.mark.parametrize("top_k", ["1", "2", "all"])
def test_written_labels_are_the_teachers_to_float16(images, tmp_path, checkpoint, top_k):
    out = tmp_path / "labels"
    assert run(images, out, "--teacher", f"animals={checkpoint}", "--top-k", top_k, "--batch-size", "3") == 0
    rows = datasets.Dataset.from_parquet([str(p) for p in sorted(out.glob("*.parquet"))], cache_dir=str(tmp_path / "c"))
    assert rows["image"][:] == readable(images)
    teacher = load_teacher(checkpoint)
    width = 3 if top_k == "all" else int(top_k)
    for row in rows:
        wanted = teachers_view(teacher, images / row["image"])
        best = wanted.sort(descending=True)
        shares = torch.tensor(row["animals_probabilities"], dtype=torch.float16)
        assert row["animals_classes"] == best.indices[:width].tolist()
        # one unit in the last place: a batch of another size may round a tie the other way
        assert torch.allclose(shares.float(), best.values[:width], rtol=2**-10, atol=2**-24)
        assert row["animals_remainder"] == pytest.approx(1 - best.values[:width].sum().item(), abs=1e-3)
        assert not row["animals_human"]


def test_a_timm_teacher_sees_images_as_timm_prepares_them(images, tmp_path):
    torch.manual_seed(0)
    net = timm.create_model(TIMM).eval()
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    out = tmp_path / "labels"
    assert run(images, out, "--teacher", f"{TIMM}@{tmp_path / 'weights.pth'}", "--top-k", "5") == 0
    labels = read_labels(out)
    assert labels.tasks == {TIMM: net.num_classes}
    transform = create_transform(**resolve_model_data_config(net), is_training=False)
    first = readable(images)[0]
    with torch.inference_mode():
        wanted = net(transform(decode_rgb(str(images / first)))[None]).softmax(1)[0]
    position = labels.positions[0]
    found = labels.targets[TIMM].rows(position[None])
    assert torch.allclose(found.shares[0].float(), wanted.topk(5).values, rtol=2**-10)


def test_unreadable_images_are_listed_and_not_fatal(images, tmp_path, checkpoint, capsys):
    out = tmp_path / "labels"
    assert run(images, out, "--teacher", checkpoint) == 0
    printed = capsys.readouterr().out
    assert "1 images could not be read" in printed
    (line,) = (out / "unreadable.txt").read_text().splitlines()
    name, reason = line.split("\t")
    assert name == "dog/4.jpg"
    assert "Error" in reason
    assert name in printed
    assert len(read_labels(out).positions) == COUNT - 1
    assert re.search(r"10 images in [\d.]+ s: reading [\d.]+%, teachers [\d.]+%, writing [\d.]+%", printed)


def test_two_teachers_label_a_task_each_and_human_labels_are_kept_and_marked(images, tmp_path, checkpoint):
    out = tmp_path / "labels"
    torch.manual_seed(1)
    two = MultiTaskClassify(
        {"colour": 4, "folder": 2}, "mobilenetv2_lk", "xl_semi_supervised", model_options=TINY,
        recipe_overrides={**SHORT, "drop_path": 0.0},
    )  # fmt: skip
    several = save_checkpoint(two, tmp_path / "several.ckpt")
    teachers = [f"animals={checkpoint}", f"folder={several}"]
    assert run(images, out, "--teacher", *teachers, "--labels", "folder", "--top-k", "1") == 0
    labels = read_labels(out)
    assert labels.tasks == {"folder": 2, "animals": 3}
    names = {row["image"]: row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()}
    assert not any(row["animals_human"] for row in names.values())
    net = load_teacher(f"folder={several}")
    for name, row in names.items():
        if "/" in name:
            assert row["folder_human"]
            assert row["folder_classes"] == [int(name.startswith("dog"))]
            assert row["folder_probabilities"] == [1.0]
        else:
            wanted = teachers_view(net, images / name)
            assert wanted.shape == (6,)
            assert not row["folder_human"]
            with torch.inference_mode():
                view = net.preparation.transform(decode_rgb(str(images / name)))[None]
            assert row["folder_probabilities"][0] == pytest.approx(net.probabilities(view).max().item(), rel=2e-3)


def test_human_labels_need_no_teacher(images, tmp_path):
    assert run(images, tmp_path / "labels", "--labels", "folder") == 0
    labels = read_labels(tmp_path / "labels")
    known = labels.targets["folder"].known[labels.positions]
    assert known.tolist() == ["/" in name for name in readable(images)]
    assert torch.equal(labels.targets["folder"].human[labels.positions], known)


def test_only_missing_or_damaged_shards_are_made_again(images, tmp_path, checkpoint, capsys):
    out = tmp_path / "labels"
    assert run(images, out, "--teacher", checkpoint) == 0
    assert "3 shards written, 0 of 3 were there" in capsys.readouterr().out
    first, second, third = sorted(out.glob("*.parquet"))
    before = {path: (path.read_bytes(), path.stat().st_ino) for path in (first, second, third)}
    second.write_bytes(second.read_bytes()[:-20])
    third.unlink()
    assert run(images, out, "--teacher", checkpoint) == 0
    assert "2 shards written, 1 of 3 were there" in capsys.readouterr().out
    assert first.stat().st_ino == before[first][1]
    for path in (second, third):
        assert pq.read_table(path).equals(pq.read_table(_written(tmp_path, before[path][0])))
    assert run(images, out, "--teacher", checkpoint) == 0
    assert "0 shards written, 3 of 3 were there" in capsys.readouterr().out


def _written(folder, content):
    path = folder / "copy.parquet"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (["--top-k", "2"], "was written with top k 10, not 2"),
        (["--labels", "folder"], "with the tasks last, not folder, last"),
        (["--shard-size", "5"], "shard size 4, not 5"),
    ],
)
def test_labels_made_otherwise_are_not_added_to(images, tmp_path, checkpoint, capsys, other, sentence):
    out = tmp_path / "labels"
    assert run(images, out, "--teacher", checkpoint) == 0
    assert run(images, out, "--teacher", checkpoint, *other) == 2
    assert sentence in capsys.readouterr().err


def test_other_weights_under_the_same_name_are_noticed(images, tmp_path, checkpoint, capsys):
    out = tmp_path / "labels"
    teacher = tmp_path / "last.ckpt"
    teacher.write_bytes(Path(checkpoint).read_bytes())
    assert run(images, out, "--teacher", str(teacher)) == 0
    torch.manual_seed(7)
    save_checkpoint(ClassifyTask("mobilenetv2_lk", "mobilenetv2_100ep", 3, model_options=TINY), teacher)
    assert run(images, out, "--teacher", str(teacher)) == 2
    assert "other weights of task last" in capsys.readouterr().err


def test_processes_share_the_shards_and_the_last_one_lists_everything_unreadable(images, tmp_path, checkpoint):
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert run(images, whole, "--teacher", checkpoint) == 0
    for rank in ("1", "0"):
        if rank == "0":
            with pytest.raises(DataError, match="lacks 2 of 3 shards"):
                read_labels(shared)
        assert run(images, shared, "--teacher", checkpoint, "--rank", rank, "--world", "2") == 0
    one, other = read_labels(whole), read_labels(shared)
    assert torch.equal(one.positions, other.positions)
    assert all(torch.equal(a, b) for a, b in zip(one.targets["last"], other.targets["last"], strict=True))
    assert (whole / "unreadable.txt").read_text() == (shared / "unreadable.txt").read_text()


def start(images, out, checkpoint, *arguments):
    line = [sys.executable, "-m", "replk_lightning", "pseudo-label", "--images", str(images), "--out", str(out)]
    options = ["--teacher", checkpoint, "--device", "cpu", "--shard-size", "2", "--batch-size", "1", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*line, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


@pytest.fixture
def many(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for n in range(80):
        Image.fromarray(np.full((400, 500, 3), n % 256, dtype=np.uint8)).save(folder / f"{n:03}.jpg")
    return folder


def wait_for_shards(process, out, count):
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.parquet"))) < count:
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline, "no shard came"
        time.sleep(0.005)


def test_kill_minus_9_costs_at_most_one_shard(many, tmp_path, checkpoint):
    out = tmp_path / "labels"
    process = start(many, out, checkpoint)
    wait_for_shards(process, out, 3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    kept = {path: path.stat().st_ino for path in out.glob("*.parquet")}
    assert 3 <= len(kept) < 40
    assert all(read_info(path) is not None and read_info(path).rows == 2 for path in kept)
    pool, teacher = open_pool(str(many)), load_teacher(checkpoint)
    summary = label(pool, [teacher], out, shard_size=2, progress=False)
    assert (summary.found, summary.written) == (len(kept), 40 - len(kept))
    assert sum(summary.share(part) for part in ("reading", "teachers", "writing")) == pytest.approx(1)
    assert all(path.stat().st_ino == inode for path, inode in kept.items())
    assert read_labels(out).positions.tolist() == list(range(80))


def test_two_processes_at_once_on_one_folder_neither_lose_nor_double_a_shard(many, tmp_path, checkpoint):
    out = tmp_path / "labels"
    process = start(many, out, checkpoint)  # without ranks: both make what they do not find
    wait_for_shards(process, out, 1)
    summary = label(open_pool(str(many)), [load_teacher(checkpoint)], out, shard_size=2, progress=False)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert summary.found + summary.written == 40
    assert len(list(out.glob("*.parquet"))) == 40
    assert read_labels(out).positions.tolist() == list(range(80))
    assert not list(out.glob(".*"))


def test_what_a_killed_run_left_half_written_goes_away(images, tmp_path, checkpoint):
    out = tmp_path / "labels"
    out.mkdir()
    old, young = out / ".labels-0.parquet.1", out / ".labels-0.parquet.2"
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (0, 0))
    assert run(images, out, "--teacher", checkpoint) == 0
    assert not old.exists()
    assert young.exists()


def test_a_teacher_that_gives_nan_is_one_sentence(images, tmp_path, checkpoint):
    teacher = load_teacher(checkpoint)
    torch.nn.init.constant_(teacher.net.head.bias, float("nan"))
    with pytest.raises(labelling.PseudoLabelError, match=r"gives NaN for 0|gives NaN for 2|gives NaN for cat"):
        label(open_pool(str(images)), [teacher], tmp_path / "labels", progress=False)


def saved_set(folder):
    pictures = [Image.fromarray(np.full((20, 20, 3), 20 * n, dtype=np.uint8)) for n in range(6)]
    features = datasets.Features({"photo": datasets.Image(), "kind": datasets.ClassLabel(names=["a", "b", "c"])})
    rows = datasets.Dataset.from_dict({"photo": pictures, "kind": [0, 1, 2, 0, -1, -1]}, features=features)
    datasets.DatasetDict({"train": rows}).save_to_disk(folder)
    return folder


def test_a_datasets_label_column_is_kept_where_it_says_something(tmp_path, checkpoint):
    images, out = saved_set(tmp_path / "set"), tmp_path / "labels"
    assert run(images, out, "--teacher", f"kind={checkpoint}", "--labels", "kind") == 0
    targets = read_labels(out).targets["kind"]
    assert targets.human.tolist() == [True] * 4 + [False] * 2
    assert targets.classes[:4, 0].tolist() == [0, 1, 2, 0]
    assert targets.known.all()


def test_sets_of_this_package_are_labelled_by_name(tmp_path, checkpoint):
    assert run("generated", tmp_path / "labels", "--teacher", checkpoint) == 0
    assert len(read_labels(tmp_path / "labels").positions) == 64


def test_weights_of_this_packages_models_come_from_a_file(tmp_path):
    net = timm.create_model("mobilenetv2_lk", num_classes=1000).eval()
    torch.save({"state_dict": net.state_dict()}, tmp_path / "net.pth")
    teacher = load_teacher(f"things=mobilenetv2_lk@{tmp_path / 'net.pth'}")
    assert (teacher.task, teacher.num_classes, teacher.preparation.size) == ("things", 1000, 224)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(teacher.probabilities(images), net(images).softmax(1))


def test_a_teachers_pixels_are_as_in_its_training(tmp_path, images):
    """Sets held in memory have numbers of their own, and are not cropped."""
    torch.manual_seed(0)
    task = ClassifyTask("mobilenetv2_lk", "mobilenetv2_100ep", 3, model_options=TINY, recipe_overrides=SHORT)
    path = tmp_path / "own.ckpt"
    content = torch.load(save_checkpoint(task, path), weights_only=True)
    torch.save(content | {PIXELS: {"mean": [0.2] * 3, "std": [0.4] * 3}}, path)
    picture = decode_rgb(str(images / "cat/0.jpg"))
    whole = T.to_tensor(T.center_crop(T.resize(picture, 32), 32))
    view = load_teacher(str(path)).preparation.transform(picture)
    assert torch.allclose(view, (whole - 0.2) / 0.4, atol=1e-6)


def test_pseudo_labels_train_beside_labels(images, tmp_path, checkpoint):
    out = tmp_path / "labels"
    assert run(images, out, "--teacher", f"animals={checkpoint}", "--top-k", "2") == 0
    data = MultiTaskData(
        [Labelled("angle", "generated"), PseudoLabelled(out)],
        {"angle": "generated"},
        image_size=32,
        batch_size=8,
        num_workers=0,
    )
    assert data.tasks == {"angle": 4, "animals": 3}
    assert data.train_size == 64 + COUNT - 1
    _, targets = data.splits.train.__getitems__(list(range(64, 73)))
    labels = read_labels(out)
    expected = labels.targets["animals"].rows(labels.positions).dense(3)
    assert torch.allclose(targets["animals"].dense(3), expected)
    assert not targets["angle"].known.any()
    (images / "new.jpg").write_bytes((images / "cat/0.jpg").read_bytes())
    other = MultiTaskData([PseudoLabelled(out)], {}, image_size=32)
    with pytest.raises(DataError, match="holds 11 images and"):
        other.setup()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "nothing to write: name a --teacher"),
        (["--teacher", "nonesuch"], "no model 'nonesuch': it is neither a file nor one of timm's models"),
        (["--teacher", "replknet_3"], "timm has no weights for replknet_3"),
        (["--teacher", "resnet18@nowhere.pth"], "there is no file nowhere.pth"),
        (["--teacher", "nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
        (["--teacher", "a={c}", "a={c}"], "two teachers label the task 'a'"),
        (["--teacher", "{c}", "--images", "nowhere"], "There is no folder nowhere and no data set"),
        (["--teacher", "folder={c}", "--labels", "folder"], "are of 2 classes, the teacher last.ckpt knows 3"),
        (["--teacher", "{c}", "--labels", "a b"], "'a b' cannot name a task"),
        (["--teacher", "{c}", "--rank", "2", "--world", "2"], "rank 2 does not exist among 2"),
        (["--teacher", "{c}", "--top-k", "0"], "argument --top-k: 0 is not a whole number above 0"),
        (["--teacher", "{c}", "--top-k", "x"], "argument --top-k: x is not a whole number above 0"),
        (["--teacher", "{c}", "--device", "nonesuch"], "the device 'nonesuch' cannot be used"),
        (["--teacher", "{c}", "--out", "/proc/labels"], "/proc/labels cannot be written"),
        (["--teacher", "{w}"], "weights alone need their model's name"),
        (["--teacher", "{s}"], "segmenter.ckpt is no classifier's, and cannot label images"),
    ],
)
def test_a_wrong_argument_gets_one_sentence_and_2(images, tmp_path, checkpoint, capsys, arguments, sentence):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pth")
    if "{s}" in arguments:
        save_checkpoint(segmenter(), tmp_path / "segmenter.ckpt")
    files = {"c": checkpoint, "w": tmp_path / "weights.pth", "s": tmp_path / "segmenter.ckpt"}
    filled = [argument.format(**files) for argument in arguments]
    try:
        status = run(images, tmp_path / "labels", *filled)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1


def test_a_teacher_of_other_channels_is_refused(images, tmp_path, checkpoint):
    grey = replace(load_teacher(checkpoint), in_chans=1)
    with pytest.raises(labelling.PseudoLabelError, match=r"last.ckpt takes images of 1 channels, .*images has 3"):
        label(open_pool(str(images)), [grey], tmp_path / "labels")

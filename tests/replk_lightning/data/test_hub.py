"""Sets of the hub: local Arrow and Parquet copies, streams, damaged rows, shares of processes, error sentences."""

import io
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from replk_lightning.data import DataError, create_data
from replk_lightning.data.samplers import counts

TRAIN, VAL = 24, 6


def picture(label, format="PNG"):
    """A flat image whose grey value is ten times its label."""
    file = io.BytesIO()
    Image.new("RGB", (20, 18), (10 * label,) * 3).save(file, format)
    return file.getvalue()


def split(count, labels_name="label", images_name="image", content=picture):
    """`count` images, each of its own class: a batch shows by its labels which rows it is made of."""
    features = datasets.Features(
        {
            images_name: datasets.Image(),
            "comment": datasets.Value("string"),
            labels_name: datasets.ClassLabel(num_classes=TRAIN),
        }
    )
    rows = {
        images_name: [{"bytes": content(i), "path": f"{i}.png"} for i in range(count)],
        "comment": ["none"] * count,
        labels_name: list(range(count)),
    }
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture(scope="module")
def quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def arrow(tmp_path_factory, quiet):
    """A folder written by `save_to_disk`."""
    folder = tmp_path_factory.mktemp("arrow") / "tiny"
    datasets.DatasetDict(train=split(TRAIN), validation=split(VAL)).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def parquet(tmp_path_factory, quiet):
    """A folder of Parquet files, four for training, as the hub's sets have."""
    folder = tmp_path_factory.mktemp("parquet") / "tiny"
    folder.mkdir()
    for part in range(4):
        split(TRAIN).shard(4, part, contiguous=True).to_parquet(folder / f"train-{part:05d}-of-00004.parquet")
    split(VAL).to_parquet(folder / "validation-00000-of-00001.parquet")
    return folder


@pytest.fixture(autouse=True)
def hermetic(tmp_path, monkeypatch):
    """No network, and prepared data go to the test's own folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def load(path, **options):
    return create_data(f"hf:{path}", **{"image_size": 16, "batch_size": 4, "num_workers": 0} | options)


def labels_of(loader):
    return [labels.tolist() for _, labels in loader]


def flat(batches):
    return [label for batch in batches for label in batch]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("source", ["arrow", "parquet"])
def test_facts_and_batches(source, streaming, request):
    data = load(request.getfixturevalue(source), streaming=streaming)
    assert (data.name, data.num_classes, data.in_chans) == ("tiny", TRAIN, 3)
    assert data.train_size == (None if source == "parquet" and streaming else TRAIN)
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, images.dtype, labels.shape, labels.dtype) == (
        (4, 3, 16, 16),
        torch.float32,
        (4,),
        torch.int64,
    )
    grey = (images * torch.tensor(data.augmentation.std)[:, None, None]).mean((2, 3))[:, 0] + data.augmentation.mean[0]
    assert torch.allclose(grey * 255, 10.0 * labels, atol=0.01)
    assert flat(labels_of(data.val_dataloader())) == list(range(VAL))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True])
def test_an_epoch_shows_every_image_once_in_random_order(arrow, streaming, num_workers):
    data = load(arrow, streaming=streaming, num_workers=num_workers)
    torch.manual_seed(0)
    first = flat(labels_of(data.train_dataloader()))
    assert first != sorted(first)
    assert sorted(first) == list(range(TRAIN))
    assert sorted(flat(labels_of(data.val_dataloader()))) == list(range(VAL))


@pytest.mark.parametrize("streaming", [False, True])
def test_torchs_generator_decides_the_order(arrow, streaming):
    loader = load(arrow, streaming=streaming).train_dataloader()
    torch.manual_seed(0)
    first = labels_of(loader)
    state = torch.get_rng_state()
    second = labels_of(loader)
    assert first != second
    torch.set_rng_state(state)
    assert labels_of(loader) == second
    torch.manual_seed(0)
    assert labels_of(loader) == first
    torch.manual_seed(1)
    assert labels_of(loader) != first


def test_validation_streams_keep_their_order(arrow):
    loader = load(arrow, streaming=True).val_dataloader()
    assert labels_of(loader) == labels_of(loader)


def pretend(monkeypatch, rank, processes):
    for module in ("data.stream", "data.samplers", "distributed"):
        monkeypatch.setattr(f"replk_lightning.{module}.process", lambda: (rank, processes))


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_processes_share_a_stream_without_overlap_and_have_equally_many_batches(arrow, processes, monkeypatch):
    monkeypatch.setattr("torch.distributed.broadcast_object_list", lambda objects: objects.__setitem__(0, 7))
    shares, steps = [], set()
    for rank in range(processes):
        pretend(monkeypatch, rank, processes)
        data = load(arrow, streaming=True, batch_size=2)
        batches = labels_of(data.train_dataloader())
        steps.add(len(batches))
        shares.append(flat(batches)[: TRAIN // processes])  # what follows is the share's second round
    assert steps == {TRAIN // (2 * processes)}
    assert len(set(flat(shares))) == len(flat(shares))


@pytest.mark.parametrize("processes", [2, 5])
def test_processes_together_validate_every_image_once(arrow, processes, monkeypatch):
    monkeypatch.setattr(
        "torch.distributed.all_gather_object", lambda going, mine: going.__setitem__(slice(None), [mine] * len(going))
    )
    seen = []
    for rank in range(processes):
        pretend(monkeypatch, rank, processes)
        seen += flat(labels_of(load(arrow, streaming=True).val_dataloader()))
    assert sorted(seen) == list(range(VAL))


def test_a_process_that_has_validated_its_share_keeps_in_step_with_the_others(arrow, monkeypatch):
    pretend(monkeypatch, 0, 2)
    others = iter([True] * 5 + [False])
    monkeypatch.setattr(
        "torch.distributed.all_gather_object", lambda going, mine: going.__setitem__(slice(2), [mine, next(others)])
    )
    loader = load(arrow, streaming=True, batch_size=2).val_dataloader()
    batches = labels_of(loader)
    own = loader.own_batches
    assert own == VAL // 2 // 2 + 1
    assert batches[own:] == [batches[own - 1]] * (5 - own)
    assert [counts(loader, number) for number in range(5)] == [number < own for number in range(5)]


def test_processes_without_a_validation_image_are_told_so_together(arrow, monkeypatch):
    pretend(monkeypatch, 0, 2)
    monkeypatch.setattr(
        "torch.distributed.all_gather_object", lambda going, mine: going.__setitem__(slice(2), [mine, False])
    )
    with pytest.raises(DataError, match="too few validation images: take fewer devices"):
        next(iter(load(arrow, streaming=True).val_dataloader()))


def test_a_stream_of_unknown_length_is_read_once_and_not_shared(parquet, monkeypatch):
    loader = load(parquet, streaming=True).train_dataloader()
    assert sorted(flat(labels_of(loader))) == list(range(TRAIN))
    with pytest.raises(TypeError, match="unknown length"):
        len(loader)
    pretend(monkeypatch, 0, 2)
    monkeypatch.setattr("torch.distributed.broadcast_object_list", lambda objects: None)
    with pytest.raises(
        DataError, match=r"tiny does not say how many .*give it as train_size, or use streaming=False\."
    ):
        next(iter(loader))


def test_the_length_of_a_stream_can_be_given(parquet):
    data = load(parquet, streaming=True, train_size=TRAIN)
    assert data.train_size == TRAIN
    assert len(data.train_dataloader()) == len(labels_of(data.train_dataloader())) == TRAIN // 4


def test_a_train_stream_starts_again_in_another_order(arrow):
    dataset = load(arrow, streaming=True).train_dataloader().dataset
    dataset.begin(epoch=3, rank=0, processes=1)
    labels = [label for (_, label), _ in zip(dataset, range(2 * TRAIN), strict=False)]
    assert sorted(labels[:TRAIN]) == sorted(labels[TRAIN:]) == list(range(TRAIN))
    assert labels[:TRAIN] != labels[TRAIN:]


def damaged(label):
    return picture(label)[: 40 if label in (1, 5) else None]


@pytest.fixture
def damaged_arrow(tmp_path, quiet):
    folder = tmp_path / "damaged"
    datasets.DatasetDict(train=split(VAL), validation=split(VAL, content=damaged)).save_to_disk(folder)
    return folder


def test_damaged_rows_of_validation_are_named_and_left_out(damaged_arrow):
    with pytest.warns(UserWarning, match="skipped unreadable image") as caught:
        labels = labels_of(load(damaged_arrow).val_dataloader())
    assert labels == [[0, 2, 3], [4]]
    assert ["1.png in row 1 of damaged" in str(w.message) for w in caught] == [True, False]
    assert "5.png in row 5 of damaged" in str(caught[1].message)


def test_damaged_rows_of_a_stream_are_named_and_left_out(damaged_arrow):
    with pytest.warns(UserWarning, match="skipped unreadable image") as caught:
        labels = labels_of(load(damaged_arrow, streaming=True).val_dataloader())
    assert labels == [[0, 2, 3, 4]]
    assert [str(w.message).split()[3] for w in caught] == ["1.png", "5.png"]


def test_a_train_stream_without_one_readable_image_ends(tmp_path, quiet):
    rows = split(VAL, content=lambda _: b"nothing")
    datasets.DatasetDict(train=rows, validation=rows).save_to_disk(tmp_path / "x")
    loader = load(tmp_path / "x", streaming=True).train_dataloader()
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(DataError, match="no image of x can be read"):
        list(loader)


def test_grey_images_and_rows_without_an_image(tmp_path, quiet):
    rows = split(VAL).map(lambda row: {"image": None if row["label"] == 2 else row["image"]})
    datasets.DatasetDict(train=split(VAL), validation=rows).save_to_disk(tmp_path / "x")
    with pytest.warns(UserWarning, match="row 2 of x"):
        assert flat(labels_of(load(tmp_path / "x").val_dataloader())) == [0, 1, 3, 4, 5]


def test_columns_are_found_by_type_or_named(tmp_path, quiet):
    rows = split(VAL, labels_name="fine", images_name="photo")
    two = rows.add_column("coarse", np.zeros(VAL, int)).cast_column("coarse", datasets.ClassLabel(num_classes=3))
    datasets.DatasetDict(train=rows, validation=rows).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=two, validation=two).save_to_disk(tmp_path / "two")
    assert load(tmp_path / "one").num_classes == TRAIN
    assert load(tmp_path / "two", label_column="coarse").num_classes == 3
    with pytest.raises(DataError, match=r"two needs label_column.*ClassLabel.*these fit: fine, coarse\."):
        load(tmp_path / "two").setup()
    with pytest.raises(DataError, match="got 'comment'"):
        load(tmp_path / "one", label_column="comment").setup()


def test_fingerprint_follows_the_content_and_not_the_container(arrow, parquet, damaged_arrow):
    assert load(arrow).fingerprint == load(parquet).fingerprint
    assert load(arrow, streaming=True).fingerprint == load(arrow).fingerprint
    unread = load(parquet, streaming=True).fingerprint  # of a few rows only
    assert unread == load(parquet, streaming=True).fingerprint
    assert unread != load(parquet, streaming=True, train_split="validation").fingerprint
    assert load(arrow).fingerprint != load(damaged_arrow).fingerprint


def test_names_of_splits(arrow, tmp_path, quiet):
    with pytest.raises(DataError, match="tiny has no split 'training'; it has train, validation"):
        load(arrow, train_split="training").setup()
    assert load(arrow, train_split="validation").train_size == VAL
    datasets.DatasetDict(train=split(VAL), test=split(VAL)).save_to_disk(tmp_path / "x")
    assert len(load(tmp_path / "x").val_dataloader()) == 2
    split(VAL).save_to_disk(tmp_path / "single")
    with pytest.raises(DataError, match=r"single holds a single split: save a DatasetDict"):
        load(tmp_path / "single").setup()


def test_without_network_the_set_and_the_remedies_are_named():
    with pytest.raises(
        DataError, match=r"ILSVRC/imagenet-1k is not here and .* not reachable: .*imagefolder:PATH or ade20k:PATH\."
    ):
        create_data("imagenet-1k").setup()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub."),
            r"ILSVRC/imagenet-1k is gated .*: accept its licence .* log in .* imagefolder:PATH\.",
        ),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'x' doesn't exist"), "There is no data set ILSVRC/imagenet"),
        (ValueError("BuilderConfig 'y' not found."), "ILSVRC/imagenet-1k cannot be read: BuilderConfig 'y' not found"),
    ],
)
def test_what_the_hub_refuses_becomes_one_sentence(error, sentence, monkeypatch):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(DataError, match=sentence) as caught:
        create_data("imagenet-1k").setup()
    assert "\n" not in str(caught.value)


TRAINING_RUN = """
import sys, lightning, torch
from replk_lightning.data import create_data

class CountsLabels(lightning.LightningModule):
    shown = []

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, _):
        self.shown += batch[1].tolist()
        return self.weight * batch[0].mean()

    def validation_step(self, batch, _):
        assert len(batch[0]) == len(batch[1])

    def predict_step(self, batch, _):
        return batch[1]

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches == 12
        return torch.optim.SGD([self.weight], lr=0.1)

if __name__ == "__main__":
    data = create_data("hf:" + sys.argv[1], streaming=True, image_size=16, batch_size=4, num_workers=1)
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = lightning.Trainer(strategy="ddp", accelerator="cpu", devices=1, max_epochs=2, **quiet)
    model = CountsLabels()
    trainer.fit(model, datamodule=data)
    predicted = trainer.predict(model, datamodule=data)
    print(sorted(model.shown) == sorted([*range(24)] * 2), model.shown[:24] != model.shown[24:], predicted)
"""


def test_lightning_trains_on_a_stream_and_knows_its_steps(arrow, tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    script = tmp_path / "run.py"
    script.write_text(TRAINING_RUN)
    # A process of its own: Lightning leaves the process group and its environment variables behind.
    done = subprocess.run(
        [sys.executable, script, arrow], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    expected = "True True [tensor([0, 1, 2, 3]), tensor([4, 5])]"
    assert done.stdout.splitlines()[-1:] == [expected], done.stderr

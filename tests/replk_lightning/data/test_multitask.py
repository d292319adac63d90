"""Mixtures of sources, and one backbone with a head a task."""

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from replk_lightning.data import DataError, create_data
from replk_lightning.data.multitask import Labelled, Mixture, MixtureSampler, MultiTaskData, Source, TableTargets
from replk_lightning.data.pools import labels_of, stratified
from replk_lightning.data.targets import Targets, soften
from replk_lightning.recipes import RecipeError, get_recipe
from replk_lightning.tasks.multitask import MultiTaskClassify, soft_cross_entropy

TINY = {"width": 0.1, "stem_stride": 1, "output_stride": 8}
SHORT = {"epochs": 2, "batch_size": 16, "gpus": 1, "warmup_epochs": 0, "resolution": 32, "ema": None, "drop_path": 0.0}
TASKS = {"angle": 4, "grey": 3}


def tiny_task(**overrides):
    return MultiTaskClassify(
        TASKS, "mobilenetv2_lk", "xl_semi_supervised", model_options=TINY, recipe_overrides={**SHORT, **overrides}
    )


def trainer(folder, **options):
    return L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1, default_root_dir=folder, **options
    )  # fmt: skip


def gratings(**options):
    return create_data("generated", image_size=32, batch_size=16, **options)


class Soft:
    """A source of `count` grey images whose second task only a teacher knows."""

    def __init__(self, count):
        self.count = count

    def open(self, mixed):
        from replk_lightning.data.multitask import Opened

        images = [(torch.full((3, mixed.image_size, mixed.image_size), float(n)), n) for n in range(self.count)]
        probabilities = torch.randn(self.count, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
        targets = TableTargets({"grey": soften(probabilities, 2)})
        return Opened(Source(images, targets), {"grey": 3}, 3, "soft")


def mixture(**options):
    sources = [Labelled("angle", "generated"), Soft(10)]
    options = {"image_size": 32, "batch_size": 16, "num_workers": 0} | options
    return MultiTaskData(sources, {"angle": "generated"}, **options)


def test_a_batch_has_every_tasks_targets_and_unknown_ones_where_a_source_has_none():
    data = mixture()
    assert data.tasks == TASKS
    assert data.train_size == 64 + 10
    images, targets = next(iter(data.train_dataloader()))
    assert images.shape == (16, 3, 32, 32)
    grey = targets["grey"].known
    assert torch.equal(targets["angle"].known, ~grey)
    assert torch.equal(targets["angle"].human, ~grey)
    assert not targets["grey"].human.any()


def test_images_keep_their_own_targets_through_the_mixing():
    train = mixture().splits.train
    images, targets = train.__getitems__([70, 3, 66, 5, 73])
    soft = train.sources[1].targets(torch.arange(10))["grey"].dense(3)
    for row, number in ((0, 6), (2, 2), (4, 9)):
        assert (images[row] == number).all()
        assert torch.equal(targets["grey"].dense(3)[row], soft[number])
    labels = labels_of(gratings())
    assert targets["angle"].classes[[1, 3], 0].tolist() == labels[[3, 5]].tolist()


def test_weights_decide_how_much_of_an_epoch_a_source_makes_up():
    data = mixture(weights=[1, 3], epoch_size=80)
    batches = list(data.train_dataloader())
    assert len(batches) == 5
    soft = sum(int(targets["grey"].known.sum()) for _, targets in batches)
    assert soft == 60


def test_no_image_comes_twice_before_all_have_come_once():
    torch.manual_seed(0)
    sampler = MixtureSampler([4, 10], [1, 1], 20)
    drawn = np.array(list(sampler))
    assert len(drawn) == len(sampler) == 20
    times = np.bincount(drawn, minlength=14)
    assert times[:4].sum() == 10
    assert times[:4].min() >= 2
    assert times[:4].max() <= 3
    assert (times[4:] == 1).all()
    torch.manual_seed(0)
    assert np.array_equal(list(sampler), drawn)
    assert not np.array_equal(list(sampler), drawn)


def test_the_default_weights_show_every_image_once():
    assert sorted(MixtureSampler([3, 5], [3, 5], 8)) == list(range(8))
    assert sorted(MixtureSampler([3, 5], [0, 1], 5)) == [3, 4, 5, 6, 7]


def test_a_share_of_the_labels_is_the_same_images_of_every_class():
    labels = torch.tensor([0, 1, -1] * 20)
    chosen = stratified(labels, 0.1)
    assert labels[chosen].tolist().count(0) == labels[chosen].tolist().count(1) == 2
    assert torch.equal(stratified(labels, 0.1), chosen)
    data = MultiTaskData([Labelled("angle", "generated", 0.25)], {"angle": "generated"}, image_size=32, num_workers=0)
    assert len(data.splits.train) == 16


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: MultiTaskData([], {}), "at least one source"),
        (lambda: mixture(weights=[1]), "one weight"),
        (lambda: mixture(weights=[0, 0]), "must not all be 0"),
        (lambda: mixture(in_chans=1).tasks, "3 channels and not 1"),
        (
            lambda: MultiTaskData([Labelled("grey", "generated"), Soft(2)], {}, image_size=32).tasks,
            "Task 'grey' has 4 classes in one source and 3 in another",
        ),
    ],
)
def test_a_wrong_mixture_is_one_sentence(build, sentence):
    with pytest.raises(DataError, match=sentence):
        build()


def test_photographs_in_folders_mix(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for n in range(4):
                Image.new("RGB", (20, 20), (60 * n,) * 3).save(tmp_path / split / name / f"{n}.png")
    where = f"imagefolder:{tmp_path}"
    data = MultiTaskData(
        [Labelled("animal", where, 0.5), Labelled("angle", "generated")],
        {"animal": where},
        image_size=32,
        batch_size=4,
        num_workers=0,
    )
    assert data.tasks == {"animal": 2, "angle": 4}
    assert data.train_size == 4 + 64
    _, targets = next(iter(data.val_dataloader()))
    assert targets["animal"].classes[:, 0].tolist() == [0, 0, 0, 0]


def test_training_learns_and_logs_every_task(tmp_path):
    run, task = trainer(tmp_path, max_epochs=2), tiny_task()
    run.fit(task, mixture())
    logged = run.callback_metrics
    assert {"train_loss_angle", "train_loss_grey", "val_top1_angle", "val_top1", "val_loss"} <= set(logged)
    assert "val_top1_grey" not in logged  # no person labelled it
    assert logged["val_top1"] == logged["val_top1_angle"]
    assert 0 <= logged["val_top1"] <= 100


def batch(angle, grey):
    images = torch.randn(len(angle), 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return images, {"angle": Targets.of_labels(torch.tensor(angle)), "grey": Targets.of_labels(torch.tensor(grey))}


def logged_loss(task, data, monkeypatch):
    names = {}
    monkeypatch.setattr(task, "log", lambda name, value, **_: names.update({name: value}))
    monkeypatch.setattr(
        type(task), "trainer", property(lambda _: type("T", (), {"log_every_n_steps": 2, "global_step": 1})())
    )
    return task.training_step(data, 0), names


def test_the_loss_is_the_mean_over_tasks_of_the_mean_over_images_that_have_one(monkeypatch):
    torch.manual_seed(0)
    task = tiny_task().eval()
    images, targets = batch([0, 1, -1, 3], [-1, -1, 2, -1])
    loss, logged = logged_loss(task, (images, targets), monkeypatch)
    logits = task.logits(images)
    angle = torch.nn.functional.cross_entropy(
        logits["angle"][[0, 1, 3]], torch.tensor([0, 1, 3]), label_smoothing=task.recipe.label_smoothing
    )
    grey = soft_cross_entropy(logits["grey"], targets["grey"], task.recipe.label_smoothing)[2]
    assert torch.allclose(logged["train_loss_angle"], angle)
    assert torch.allclose(logged["train_loss_grey"], grey)
    assert torch.allclose(loss, (angle + grey) / 2)


def test_a_task_that_a_batch_lacks_changes_nothing_and_stays_in_the_graph(monkeypatch):
    torch.manual_seed(0)
    task = tiny_task().eval()
    loss, logged = logged_loss(task, batch([0, 1], [-1, -1]), monkeypatch)
    assert torch.allclose(loss, logged["train_loss_angle"])
    assert "train_loss_grey" not in logged
    loss.backward()
    head = task.model.get_classifier()
    assert head.weight.grad[:4].abs().sum() > 0
    assert head.weight.grad[4:].abs().sum() == 0  # there, for DDP, and zero


def test_heads_are_rows_of_one_layer():
    task = tiny_task().eval()
    images = torch.randn(2, 3, 32, 32)
    features = task.model.forward_head(task.model.forward_features(images), pre_logits=True)
    head = task.model.get_classifier()
    grey = features @ head.weight[4:].T + head.bias[4:]
    assert torch.allclose(task.logits(images)["grey"], grey, atol=1e-5)
    shares = task.predict_step((images, {}), 0)
    assert [share.shape for share in shares.values()] == [(2, 4), (2, 3)]


def test_a_recipe_that_mixes_images_is_refused():
    with pytest.raises(RecipeError, match="mixes images"):
        tiny_task(mixup=0.8)


def test_a_mixture_needs_no_order_of_its_own_for_validation():
    data = mixture()
    assert isinstance(data.splits.val, Mixture)
    first, again = ([t["angle"].classes for _, t in data.val_dataloader()] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_mixture_follows_the_recipe():
    data = MultiTaskData.for_recipe(
        get_recipe("xl_semi_supervised"), [Labelled("angle", "generated")], {"angle": "generated"}, image_size=32
    )
    assert (data.image_size, data.batch_size) == (32, 32)  # asked for; 2048 over 64
    assert data.augmentation.mean == data.augmentation.std == (0.5, 0.5, 0.5)
    assert data.augmentation.auto_augment == "rand-m9-mstd0.5-inc1"

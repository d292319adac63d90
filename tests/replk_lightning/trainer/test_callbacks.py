"""The callbacks beside nets that nobody here wrote: none changes what is learned, whatever else the trainer does."""

import copy
import random

import lightning as L
import numpy as np
import pytest
import timm
import torch
import torchvision
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.strategies import FSDPStrategy
from model_samples import randomise, relative
from PIL import Image
from timm.models.convnext import ConvNeXt
from timm.models.repvit import RepVit
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import replk_lightning.models  # noqa: F401  (registers the models)
from replk_lightning.measure.erf import FieldError, contribution
from replk_lightning.measure.kernel_pictures import central_share, fused_kernels
from replk_lightning.trainer.callbacks import (
    CallbackError,
    EffectiveReceptiveField,
    KernelNorms,
    MergeBeforeValidation,
    _Inside,
)
from replk_lightning.trainer.resume import random_state

pytestmark = pytest.mark.filterwarnings("ignore:there is nothing to merge")
SIDE = 32


def picture(index):
    return torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(index))


class Pictures(torch.utils.data.Dataset):
    """Eight pictures and their labels; with noise, reading one draws from every generator, as augmentation does."""

    def __init__(self, noise):
        self.noise = noise

    def __len__(self):
        return 8

    def __getitem__(self, index):
        drawn = torch.randn(()) + random.random() + np.random.rand() if self.noise else 0.0
        return picture(index) + 0.01 * drawn, index % 3


class Plain(L.LightningModule):
    """Somebody's module: a classifier, a loss, an optimizer; `given` is what validation has come to."""

    def __init__(self, model):
        super().__init__()
        self.model, self.given = model, []

    def training_step(self, batch, _):
        return F.cross_entropy(self.model(batch[0].float()), batch[1])

    def validation_step(self, batch, _):
        self.given.append(self.model(batch[0].float()).clone())
        self.log("val_loss", F.cross_entropy(self.given[-1], batch[1]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)


SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "num_classes": 3, "drop_path_rate": 0.2}
NETS = {
    "convnext": lambda: ConvNeXt(**SMALL),
    "repghostnet": lambda: timm.create_model("repghostnet_050", num_classes=3),
    "repvit": lambda: RepVit(num_classes=3, embed_dim=(8, 8, 16, 16), depth=(1, 1, 1, 1)),
    "torchvision": lambda: torchvision.models.mobilenet_v3_small(num_classes=3),
    "replknet": lambda: timm.create_model("replknet_13", **SMALL),
}


def module(name="replknet"):
    torch.manual_seed(1)
    return Plain(NETS[name]())


def trainer(folder, *callbacks, **flags):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    quiet |= {"logger": CSVLogger(folder, name=None, version="log"), "log_every_n_steps": 1}
    options = {"max_epochs": 1, "accelerator": "cpu", **({} if flags.get("barebones") else quiet), **flags}
    return L.Trainer(default_root_dir=folder, callbacks=list(callbacks), **options)


def fit(folder, task, *callbacks, **flags):
    L.seed_everything(5, verbose=False)
    fitter = trainer(folder, *callbacks, **flags)
    fitter.fit(task, DataLoader(Pictures(True), 4, shuffle=True), DataLoader(Pictures(False), 4))
    return fitter


def validate(folder, task, *callbacks):
    trainer(folder, *callbacks, logger=False).validate(task, DataLoader(Pictures(False), 4), verbose=False)


def everything(name="replknet"):
    where = {"torchvision": "model.features"}.get(name)
    return [EffectiveReceptiveField(images=3, module=where), KernelNorms(), MergeBeforeValidation()]


def equal(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right


class Watch(Callback):
    """What a user's own callback meets where checkpoints are written and weights averaged."""

    def __init__(self):
        self.met = set()

    def _look(self, pl_module):
        self.met.add((*pl_module.state_dict(), *(name for name, _ in pl_module.named_modules())))

    def on_validation_epoch_start(self, trainer, pl_module):
        self._look(pl_module)

    def on_validation_epoch_end(self, trainer, pl_module):
        self._look(pl_module)

    def on_validation_end(self, trainer, pl_module):
        self._look(pl_module)


@pytest.mark.parametrize("name", ["convnext", "repghostnet", "torchvision", "replknet"])
def test_training_ends_bit_for_bit_as_without_them(tmp_path, name):
    ends = []
    for number, ours in enumerate(([], everything(name))):
        task, ema, watch = module(name), EMAWeightAveraging(decay=0.5), Watch()
        modes = [each.training for each in task.modules()]
        fitter = fit(tmp_path / str(number), task, ema, *ours, watch, max_epochs=2)
        assert [each.training for each in task.modules()] == modes
        assert all(parameter.requires_grad for parameter in task.parameters())
        assert not any(each._forward_hooks or each._forward_pre_hooks for each in task.modules())
        gradients = [parameter.grad for parameter in task.parameters()]
        averages = ema._average_model.state_dict()
        assert len(watch.met) == 1
        ends.append(
            [task.state_dict(), gradients, fitter.optimizers[0].state_dict(), averages, random_state(), watch.met]
        )
    assert equal(*ends)


@pytest.mark.parametrize("name", ["repghostnet", "repvit", "replknet"])
def test_what_is_validated_is_the_averaged_net_merged_whichever_callback_comes_first(tmp_path, name):
    ema, images = EMAWeightAveraging(decay=0.5), torch.stack([picture(index) for index in range(8)])
    ours = [MergeBeforeValidation(), ema] if name == "repvit" else [ema, MergeBeforeValidation()]
    task = module(name)
    randomise(task.model)
    fit(tmp_path, task, *ours, num_sanity_val_steps=0)
    averaged = copy.deepcopy(ema._average_model.module.model).eval()
    merged = timm.utils.reparameterize_model(averaged)
    with torch.no_grad():
        assert all(map(torch.equal, task.given, map(merged, images.split(4))))
        assert relative(merged(images), averaged(images)) < 1e-3
    assert merged.state_dict().keys() != averaged.state_dict().keys() == task.model.state_dict().keys()


class Fails(Plain):
    def validation_step(self, batch, _):
        self.met = [type(each) for each in self.modules()]
        raise RuntimeError("out of memory")


def test_what_was_merged_is_put_back_where_validation_fails(tmp_path):
    task = Fails(module().model)
    modules = list(task.modules())
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(tmp_path, task, *everything())
    assert len(task.met) < len(modules)  # it failed with merged modules in place
    assert list(task.modules()) == modules
    fit(tmp_path / "again", Plain(task.model.train()), *everything())


def test_hooks_around_what_is_merged_are_called_and_those_inside_are_refused(tmp_path):
    task, calls = module(), []

    class Recorder:  # as of a library: it cannot be copied
        def __deepcopy__(self, memo):
            raise TypeError("no copies")

        def record(self, *_):
            calls.append(self)

    large = task.model.stages[0].blocks[0].large_kernel
    large.register_forward_hook(Recorder().record)
    task.eval()
    validate(tmp_path, task, MergeBeforeValidation())
    assert len(calls) == 2
    large.lkb_origin.conv.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"large_kernel\.lkb_origin\.conv carries hooks"):
        validate(tmp_path, task, MergeBeforeValidation())


def test_checkpoints_hold_the_net_as_it_trains(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "kept", filename="best", monitor="val_loss", save_on_train_epoch_end=False)
    task = module()
    fit(tmp_path, task, *everything(), checkpoint, enable_checkpointing=True)
    assert (
        torch.load(tmp_path / "kept" / "best.ckpt", weights_only=True)["state_dict"].keys() == task.state_dict().keys()
    )


def test_the_picture_is_the_field_of_the_first_validation_images(tmp_path):
    task = module("convnext")
    fit(tmp_path, task, EffectiveReceptiveField(images=6, every_n_epochs=2), max_epochs=2)
    (path,) = (tmp_path / "log" / "erf").iterdir()
    assert path.name == "epoch=1-step=4.png"
    drawn = np.asarray(Image.open(path)).astype(int)
    field = contribution(task.model, (picture(index) for index in range(6)))
    assert drawn.shape == (SIDE, SIDE, 3)
    assert drawn[field > 0.9].sum(-1).mean() + 200 < drawn[field < 0.1].sum(-1).mean()  # dark is much
    validate(tmp_path / "x", task, EffectiveReceptiveField())
    assert [file.name for file in (tmp_path / "x" / "erf").iterdir()] == ["epoch=0-step=0.png"]


class Takes(Logger):
    """A logger that takes images, as W&B's does, and one that has no folder."""

    name, version = "mine", "7"

    def __init__(self, save_dir=None):
        super().__init__()
        self.folder, self.images = save_dir, []

    @property
    def save_dir(self):
        return self.folder

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, *_):
        pass

    def log_image(self, key, images, step=None):
        self.images += [(key, image.shape, step) for image in images]


def test_all_loggers_that_take_images_get_them(tmp_path):
    loggers = [Takes(str(tmp_path / "shared")), CSVLogger(tmp_path), Takes()]
    fit(tmp_path, module("convnext"), EffectiveReceptiveField(images=1), logger=loggers)
    assert loggers[0].images == loggers[2].images == [("erf", (SIDE, SIDE, 3), 2)]
    assert [path.name for path in (tmp_path / "shared" / "mine" / "7" / "erf").iterdir()] == ["epoch=0-step=2.png"]


@pytest.mark.filterwarnings("ignore:.*barebones", "ignore:.*fast_dev_run", "ignore:You are trying to .self.log")
@pytest.mark.parametrize(
    "flags", [{"barebones": True}, {"logger": False}, {"fast_dev_run": True}, {"precision": "bf16-mixed"}]
)
def test_trainers_of_any_kind_take_them(tmp_path, flags):
    fit(tmp_path, module(), *everything(), **flags)
    assert len(list(tmp_path.rglob("erf/*.png"))) == 1


def test_kernel_norms_and_central_mass_of_every_depthwise_layer_are_logged(tmp_path):
    task = module()
    fitter = fit(tmp_path, task, KernelNorms())
    logged, large = fitter.logged_metrics, task.model.stages[3].blocks[0].large_kernel
    merged = fused_kernels(large).merged
    name = "model.stages.3.blocks.0.large_kernel"
    assert float(logged[f"kernel_norm/{name}"]) == pytest.approx(float(merged.norm()), rel=1e-5)
    assert float(logged[f"central_mass/{name}"]) == pytest.approx(central_share(merged.abs().sum((0, 1))), rel=1e-5)
    assert "kernel_norm/model.stem.1.conv" in logged
    assert "central_mass/model.stem.1.conv" not in logged  # 3×3
    assert not any("lkb_origin" in key or "small_conv" in key for key in logged)


def test_the_centre_of_thin_and_small_kernels():
    assert central_share(torch.ones(1, 11)) == pytest.approx(3 / 11)
    assert central_share(torch.ones(2, 2)) == 1


class Blind(Plain):
    def forward_features(self, x):
        return x

    def validation_step(self, batch, _):
        pass


def test_what_cannot_work_is_told_in_the_sanity_check(tmp_path):
    with pytest.raises(CallbackError, match="nothing in Plain has forward_features"):
        fit(tmp_path, module("torchvision"), EffectiveReceptiveField(every_n_epochs=9))
    with pytest.raises(CallbackError, match=r"Plain has no module 'model\.nowhere'"):
        fit(tmp_path, module("torchvision"), EffectiveReceptiveField(module="model.nowhere"))
    with pytest.raises(FieldError, match="gives no feature map"):
        fit(tmp_path, module("torchvision"), EffectiveReceptiveField(module="model"))
    with pytest.raises(CallbackError, match="hold no images"):
        trainer(tmp_path, EffectiveReceptiveField(), logger=False).validate(Blind(nn.Identity()), DataLoader(range(2)))


def test_the_map_of_a_submodule_is_that_which_it_gives_inside_the_net(tmp_path):
    task = Plain(torchvision.models.resnet18(num_classes=3))
    validate(tmp_path, task, EffectiveReceptiveField(images=2, module="model.layer2"))
    (drawn,) = tmp_path.rglob("*.png")
    with Image.open(drawn) as drawing:
        assert drawing.size == (SIDE, SIDE)
    net = _Inside(task.model.eval(), task.model.layer2, "model.layer2")
    x = torch.randn(2, 3, SIDE, SIDE)
    stem = task.model.maxpool(task.model.relu(task.model.bn1(task.model.conv1(x))))
    assert torch.equal(net(x), task.model.layer2(task.model.layer1(stem)))


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("model.fc", "gives no feature map"),
        ("model.avgpool.nothing", "has no module"),
        ("model.unused", "is not called"),
    ],
)
def test_a_submodule_that_gives_no_map_is_told(tmp_path, where, words):
    task = Plain(torchvision.models.resnet18(num_classes=3))
    task.model.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises((CallbackError, FieldError), match=words):
        validate(tmp_path, task, EffectiveReceptiveField(images=2, module=where))


@pytest.mark.parametrize("callback", [EffectiveReceptiveField, KernelNorms, MergeBeforeValidation])
def test_weights_in_shards_and_numbers_that_make_no_sense_are_refused(tmp_path, callback, monkeypatch):
    fitter = trainer(tmp_path)
    monkeypatch.setattr(type(fitter), "strategy", object.__new__(FSDPStrategy))
    with pytest.raises(CallbackError, match=f"{callback.__name__} needs a process that holds all weights, and FSDP"):
        callback().setup(fitter, module(), "fit")
    if callback is not MergeBeforeValidation:
        with pytest.raises(CallbackError, match="every_n_epochs is 0"):
            callback(every_n_epochs=0)


def test_layers_of_no_depth_are_named(tmp_path):
    task = Plain(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 3)))
    with (
        pytest.warns(UserWarning, match="there is no depthwise layer in Plain"),
        pytest.warns(UserWarning, match="there is nothing to merge in Plain"),
    ):
        fit(tmp_path, task, KernelNorms(), MergeBeforeValidation())

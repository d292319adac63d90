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
from model_samples import randomise, relative
from PIL import Image
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
    heat_map,
)
from replk_lightning.trainer.resume import random_state

SIDE = 32


class Pictures(torch.utils.data.Dataset):
    """Eight random pictures and their labels; reading one draws random numbers, as augmentation does."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        fixed = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(index))
        return fixed + 0.01 * torch.randn(()) + 0.01 * (random.random() + np.random.rand()), index % 3


class Plain(L.LightningModule):
    """Somebody's module: a classifier, a loss, an optimizer."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.seen = []

    def training_step(self, batch, _):
        return F.cross_entropy(self.model(batch[0].float()), batch[1])

    def validation_step(self, batch, _):
        self.seen.append(self.model(batch[0].float()).clone())
        self.log("val_loss", F.cross_entropy(self.seen[-1], batch[1]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)


NETS = {
    "convnext": lambda: timm.create_model("convnext_atto", num_classes=3, drop_path_rate=0.2),
    "mobileone": lambda: timm.create_model("mobileone_s0", num_classes=3),
    "repvit": lambda: timm.create_model("repvit_m1", num_classes=3),
    "torchvision": lambda: torchvision.models.mobilenet_v3_small(num_classes=3),
    "replknet": lambda: timm.create_model(
        "replknet_13", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=3, drop_path_rate=0.2
    ),
}


def module(name="replknet"):
    torch.manual_seed(1)
    return Plain(NETS[name]())


def trainer(folder, *callbacks, **flags):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    options = {"max_epochs": 2, "logger": CSVLogger(folder, name=None, version="log", flush_logs_every_n_steps=1), **flags}
    if not options.get("barebones"):
        options = quiet | {"enable_checkpointing": False, "log_every_n_steps": 1} | options
    return L.Trainer(default_root_dir=folder, callbacks=list(callbacks), **options)


def fit(folder, task, *callbacks, **flags):
    L.seed_everything(5, verbose=False)
    fitter = trainer(folder, *callbacks, **flags)
    fitter.fit(task, DataLoader(Pictures(), 4, shuffle=True), DataLoader(Pictures(), 4))
    return fitter


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
    """What a user's own callback meets between and in the hooks of ours."""

    def __init__(self):
        self.names, self.keys = [], set()

    def _look(self, pl_module):
        self.names.append([name for name, _ in pl_module.named_modules()])
        self.keys.add(tuple(pl_module.state_dict()))

    def on_validation_epoch_start(self, trainer, pl_module):
        self._look(pl_module)

    def on_validation_epoch_end(self, trainer, pl_module):
        self._look(pl_module)

    def on_validation_end(self, trainer, pl_module):
        self._look(pl_module)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._look(pl_module)


@pytest.mark.filterwarnings("ignore:there is nothing to merge")
@pytest.mark.parametrize("name", ["convnext", "mobileone", "torchvision", "replknet"])
def test_training_ends_bit_for_bit_as_without_them(tmp_path, name):
    states = []
    for number, ours in enumerate(([], everything(name))):
        task = module(name)
        modes = [each.training for each in task.modules()]
        ema = EMAWeightAveraging(decay=0.5)
        fitter = fit(tmp_path / str(number), task, ema, *ours, Watch())
        assert [each.training for each in task.modules()] == modes
        assert all(parameter.requires_grad for parameter in task.parameters())
        assert not any(each._forward_hooks or each._forward_pre_hooks for each in task.modules())
        gradients = [parameter.grad for parameter in task.parameters()]
        optimizer = fitter.optimizers[0].state_dict()
        average = ema._average_model.state_dict()
        states.append([task.state_dict(), gradients, optimizer, average, random_state(), fitter.callbacks[-1].keys])
    assert equal(states[0], states[1])


@pytest.mark.parametrize("first", [True, False])
def test_what_is_validated_is_the_averaged_net_merged(tmp_path, first):
    task = module("mobileone")
    randomise(task.model)
    ema = EMAWeightAveraging(decay=0.5)
    pair = [MergeBeforeValidation(), ema] if first else [ema, MergeBeforeValidation()]
    fit(tmp_path, task, *pair, num_sanity_val_steps=0, max_epochs=1)
    averaged = copy.deepcopy(ema._average_model.module.model).eval()
    torch.manual_seed(5)
    merged = timm.utils.reparameterize_model(averaged)
    images = torch.stack([torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(i)) for i in range(8)])
    with torch.no_grad():
        assert relative(torch.cat(task.seen), merged(images)) < 0.1  # the pictures were moved by some noise
        assert relative(merged(images), averaged(images)) < 1e-4
    assert not any(getattr(each, "reparam_conv", None) for each in task.modules())

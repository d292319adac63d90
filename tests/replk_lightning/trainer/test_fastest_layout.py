"""The layout that a training takes: measured once on a GPU, kept in checkpoints, the same in all processes.

There is no GPU here: devices and timings are faked, and what a layout changes, the last bits, is seen on the CPU.
"""

from types import SimpleNamespace

import lightning as L
import pytest
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy
from torch.nn import functional as F
from torch.utils.data import DataLoader

import replk_lightning.models  # noqa: F401  (registers the models)
from replk_lightning.trainer import fastest_layout
from replk_lightning.trainer.fastest_layout import FastestLayout, images_of
from replk_lightning.trainer.resume import ExactResume

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*exists and is not empty", "ignore:.*does not have many workers", "ignore:.*LeafSpec"
)
NCHW_WINS = {"channels_last": [2.0] * 8, "nchw": [1.0] * 8}


class Module(L.LightningModule):
    """A small net of this package."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        options = {"dims": (8, 16, 16, 16), "depths": (1, 1, 1, 1), "num_classes": 3, "drop_path_rate": 0.2}
        self.model = timm.create_model("replknet_3", **options)

    def training_step(self, batch, _):
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)


@pytest.fixture
def asked(monkeypatch):
    """Arguments of every timing, on a GPU where NCHW wins."""
    calls = []
    monkeypatch.setattr(fastest_layout, "on_gpu", lambda trainer: True)
    monkeypatch.setattr(fastest_layout, "layout_seconds", lambda *given: calls.append(given) or NCHW_WINS)
    return calls


def fit(folder, module, epochs=1, ckpt_path=None, **flags):
    kept = ModelCheckpoint(folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[ExactResume(), FastestLayout(), kept], **flags,
    )  # fmt: skip
    pictures = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loader = DataLoader([(picture, index % 3) for index, picture in enumerate(pictures)], 4, shuffle=True)
    trainer.fit(module, loader, ckpt_path=ckpt_path, weights_only=True)
    return torch.load(folder / "last.ckpt", weights_only=True)


def test_it_is_measured_once_told_in_one_line_and_stands_in_the_checkpoint(tmp_path, asked, capsys):
    module = Module()
    checkpoint = fit(tmp_path, module, epochs=2, precision="bf16-mixed")
    ((net, images, training, autocast),) = asked
    assert net is module.model
    assert (images.shape, training, autocast) == ((4, 3, 32, 32), True, torch.bfloat16)
    assert module.model.memory_format is torch.contiguous_format
    assert checkpoint["layout"] == {"model": "nchw"}
    told = "model trains in nchw, as measured: channels_last 2000.0 ms a step, nchw 1000.0 ms a step"
    assert capsys.readouterr().out.splitlines().count(told) == 1


def test_a_run_that_goes_on_computes_in_the_layout_that_it_began_in(tmp_path, asked):
    torch.manual_seed(1)
    unbroken = fit(tmp_path / "unbroken", Module(), epochs=2)
    torch.manual_seed(1)
    fit(tmp_path / "broken", Module(), epochs=1)
    module, before = Module(), len(asked)
    again = fit(tmp_path / "broken", module, epochs=2, ckpt_path=tmp_path / "broken" / "last.ckpt")
    assert len(asked) == before
    assert module.model.memory_format is torch.contiguous_format
    assert again["layout"] == {"model": "nchw"}
    assert all(torch.equal(value, again["state_dict"][name]) for name, value in unbroken["state_dict"].items())


def test_a_run_that_began_without_a_choice_goes_on_without_one(tmp_path, asked, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(fastest_layout, "on_gpu", lambda trainer: False)
        assert "layout" not in fit(tmp_path, Module())
    assert "layout" not in fit(tmp_path, Module(), epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert asked == []


def test_a_layout_that_was_set_wins_and_nothing_is_measured(tmp_path, asked):
    module = Module()
    module.model.memory_format = torch.channels_last
    assert fit(tmp_path, module)["layout"] == {"model": "channels_last"}
    fit(tmp_path / "nchw", Module())
    again = Module()
    again.model.memory_format = torch.channels_last
    fit(tmp_path / "nchw", again, epochs=2, ckpt_path=tmp_path / "nchw" / "last.ckpt")
    assert again.model.memory_format is torch.channels_last
    assert len(asked) == 1


def test_a_cpu_measures_nothing_and_takes_no_gpus_choice(tmp_path, asked, monkeypatch):
    fit(tmp_path, Module())
    monkeypatch.undo()
    module = Module()
    fit(tmp_path, module, epochs=2, ckpt_path=tmp_path / "last.ckpt")
    assert module.model.memory_format is None


def test_a_net_is_really_timed_in_a_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(fastest_layout, "on_gpu", lambda trainer: True)
    module = Module()
    assert fit(tmp_path, module)["layout"] == {"model": module.model.layout}


def begin(strategy, rank, module):
    trainer = SimpleNamespace(strategy=strategy, global_step=0, precision="32-true", is_global_zero=rank == 0)
    FastestLayout().on_train_batch_start(trainer, module, [torch.zeros(2, 3, 32, 32), torch.zeros(2)], 0)


def test_rank_0_decides_for_all_processes(asked, capsys):
    class Second(DDPStrategy):
        def broadcast(self, own, src=0):
            assert (own, src) == ("nchw", 0)
            return "channels_last"  # what rank 0 found

    module = Module()
    begin(Second(), 1, module)
    assert module.model.memory_format is torch.channels_last
    assert len(asked) == 1
    assert capsys.readouterr().out == ""


def test_weights_in_shards_are_not_copied(asked):
    module = Module()
    begin(FSDPStrategy(), 0, module)
    assert (asked, module.model.memory_format) == ([], None)


def test_the_device_of_the_strategy_tells_a_gpu():
    for name in ("cuda", "cpu"):
        trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(name)))
        assert fastest_layout.on_gpu(trainer) == (name == "cuda")


def test_images_are_found_in_batches_of_any_form():
    images = torch.ones(2, 3, 4, 5)
    assert images_of({"masks": torch.ones(2, 1, 4, 5), "images": images}, 3) is images
    masks = [{"masks": torch.ones(1, 4, 5, dtype=torch.uint8), "boxes": torch.ones(1, 4)}]
    padded = images_of([[torch.ones(3, 4, 5), torch.ones(3, 2, 7)], masks], 3)
    assert padded.shape == (2, 3, 4, 7)
    assert padded.sum((1, 2, 3)).tolist() == [60, 42]
    assert images_of([torch.ones(2, 3, 4, 5, dtype=torch.uint8), torch.ones(2)], 3) is None


def test_without_images_to_time_the_rule_holds_and_it_is_said(asked):
    module, strategy = Module(), SingleDeviceStrategy(torch.device("cpu"))
    trainer = SimpleNamespace(strategy=strategy, global_step=0, precision="32-true", is_global_zero=True)
    with pytest.warns(UserWarning, match="model trains in the layout of the rule: the first batch holds no images"):
        FastestLayout().on_train_batch_start(trainer, module, [torch.ones(2, 3, 4, 5, dtype=torch.uint8)], 0)
    assert not asked
    assert module.model.memory_format is None

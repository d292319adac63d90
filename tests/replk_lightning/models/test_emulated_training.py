"""A RepLKNet trains through the CUDA kernels, run on the CPU by the emulator, as it does through torch."""

import pytest
import torch
import torch.nn.functional as F

import native
from native import dispatch
from replk_lightning.models import RepLKNet

why_not = native.why_not("emulated")


def one_step(backend, monkeypatch, dtype=torch.float32):
    """Loss and gradients of the first training step."""
    monkeypatch.setitem(dispatch.AUTO, "cpu", backend)
    torch.manual_seed(0)
    net = RepLKNet(kernel_sizes=(13, 7), depths=(1, 1), dims=(8, 8), num_classes=3, in_chans=1).to(dtype)
    images, labels = torch.randn(4, 1, 32, 32).to(dtype), torch.tensor([0, 1, 2, 0])
    loss = F.cross_entropy(net(images), labels)
    loss.backward()
    return loss.item(), torch.cat([parameter.grad.flatten().double() for parameter in net.parameters()])


@pytest.mark.skipif(why_not is not None, reason=str(why_not))
def test_a_replknet_trains_a_step_through_the_emulated_kernels(monkeypatch):
    exact_loss, exact = one_step("torch", monkeypatch, torch.float64)
    torch_loss, by_torch = one_step("torch", monkeypatch)
    loss, emulated = one_step("emulated", monkeypatch)
    assert loss == pytest.approx(exact_loss, abs=2 * abs(torch_loss - exact_loss) + 1e-6)
    assert (emulated - exact).norm() <= 2 * (by_torch - exact).norm()
    assert (emulated - exact).norm() < 1e-5 * exact.norm()

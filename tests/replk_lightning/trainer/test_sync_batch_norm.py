import pytest
import torch
import torch.distributed as dist
from torch import nn

from replk_lightning.trainer.sync_batch_norm import SyncedBatchNorm


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_one_process_on_a_cpu_sees_what_torchs_batch_norm_sees(process_group, dtype):
    torch.manual_seed(0)
    images = 100 + 10 * torch.randn(8, 3, 32, 32, dtype=torch.float64)  # a sum of them is more than float16 holds
    own, torchs = (nn.BatchNorm2d(3, dtype=kind) for kind in (dtype, torch.float64))
    own = SyncedBatchNorm(on_cpu=True).apply(nn.Sequential(own))
    found, expected = own(images.to(dtype)), torchs(images.to(dtype).double())
    assert found.dtype == dtype
    step = torch.finfo(dtype).eps
    assert (found.double() - expected).abs().max() <= 4 * expected.abs().max() * max(step, 1e-6)
    tracked, right = own[0].running_mean.double(), torchs.running_mean
    assert torch.allclose(tracked, right, rtol=max(step, 1e-6))

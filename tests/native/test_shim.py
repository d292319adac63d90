"""The old extension's names: code that asks for them finds the operator, and nothing is installed unasked."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from native import __main__ as command
from native import shim
from native.accuracy import relative_error

MODULE, COMPILED = shim.FILES


@pytest.fixture
def folder(tmp_path, capsys):
    assert command.main(["shim", "--write", str(tmp_path / "shim")]) == 0
    assert f'export LARGE_KERNEL_CONV_IMPL="{tmp_path / "shim"}"' in capsys.readouterr().out
    return tmp_path / "shim"


# The three ways in which repositories ask: a folder in the environment, PYTHONPATH or a path of their own, and a try.
USER = """
import os, sys
import torch
from torch import nn

def by_environment(channels, kernel_size, padding, bias):
    implementation = os.environ.get("LARGE_KERNEL_CONV_IMPL")
    if implementation and kernel_size > 5 and padding == kernel_size // 2:
        sys.path.append(implementation)
        from depthwise_conv2d_implicit_gemm import DepthWiseConv2dImplicitGEMM
        return DepthWiseConv2dImplicitGEMM(channels, kernel_size, bias=bias)
    return nn.Conv2d(channels, channels, kernel_size, 1, padding, groups=channels, bias=bias)

torch.manual_seed(0)
layer = by_environment(4, 9, 4, True)
from depthwise_conv2d_implicit_gemm import DepthWiseConv2dImplicitGEMM
assert type(layer) is DepthWiseConv2dImplicitGEMM
stock = nn.Conv2d(4, 4, 9, padding=4, groups=4)
stock.load_state_dict(layer.state_dict())
x = torch.randn(2, 4, 13, 12)
torch.testing.assert_close(layer(x), stock(x))
assert DepthWiseConv2dImplicitGEMM(4, 7).bias is None
assert DepthWiseConv2dImplicitGEMM(4, (51, 5), True)(x).shape == x.shape
print("right")
"""


def run(code, **environment):
    env = {k: v for k, v in os.environ.items() if k != "LARGE_KERNEL_CONV_IMPL"} | environment
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    return done.stdout, done.stderr


def test_code_that_reads_the_environment_runs_unmodified(folder):
    out, err = run(USER, LARGE_KERNEL_CONV_IMPL=str(folder))
    assert out == "right\n", err


@pytest.fixture
def imported(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    yield
    for name in (MODULE, COMPILED):
        sys.modules.pop(name.removesuffix(".py"), None)


def test_the_module_keeps_the_size_and_says_so(imported):
    from depthwise_conv2d_implicit_gemm import DepthWiseConv2dImplicitGEMM

    layer = DepthWiseConv2dImplicitGEMM(6, 31, bias=True)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert isinstance(layer, nn.Conv2d)
    assert layer.padding == (15, 15)
    x = torch.randn(1, 6, 8, 8)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=15, groups=6))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_the_functions_compute_in_their_own_dtype(imported):
    from depthwise_conv2d_implicit_gemm import _DepthWiseConv2dImplicitGEMMFP16, _DepthWiseConv2dImplicitGEMMFP32

    x, weight = (torch.randn(s, requires_grad=True) for s in ((2, 4, 9, 9), (4, 1, 5, 5)))
    right = F.conv2d(x, weight, padding=2, groups=4)
    with torch.autocast("cpu", torch.bfloat16):
        y = _DepthWiseConv2dImplicitGEMMFP32.apply(x, weight)
        half = _DepthWiseConv2dImplicitGEMMFP16.apply(x.half(), weight)
    torch.testing.assert_close(y, right)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), right, rtol=0.02, atol=0.02)
    exact = F.conv2d(x.double(), weight.double(), padding=2, groups=4)
    gradients = (torch.autograd.grad(each.square().sum(), (x, weight)) for each in (y, right, exact))
    for ours, theirs, double in zip(*gradients, strict=True):
        assert relative_error(ours, double) <= 2 * relative_error(theirs, double) + 1e-6


@pytest.mark.parametrize("number", ["fp32", "fp16"])
def test_a_copy_of_the_extensions_python_finds_its_compiled_part(imported, number):
    import _depthwise_conv2d_implicit_gemm_C as extension

    dtype = {"fp32": torch.float32, "fp16": torch.float16}[number]
    x, grad, weight = (torch.randn(s, dtype=dtype) for s in ((2, 4, 9, 9), (2, 4, 9, 9), (4, 1, 5, 5)))
    wide = [t.double().requires_grad_() for t in (x, weight)]
    y = F.conv2d(*wide, padding=2, groups=4)
    gx, gw = torch.autograd.grad(y, wide, grad.double())
    tolerance = {"fp32": 1e-4, "fp16": 3e-2}[number]
    for ours, right in (
        (getattr(extension, f"forward_{number}")(x, weight), y),
        (getattr(extension, f"backward_data_{number}")(grad, weight), gx),
        (getattr(extension, f"backward_filter_{number}")(grad, x, weight), gw),
    ):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), right, rtol=tolerance, atol=tolerance)


def test_without_write_the_files_are_printed_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main(["shim"]) == 0
    printed = capsys.readouterr().out
    assert all(f"# --- {name} ---\n{text}" in printed for name, text in shim.FILES.items())
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_somebody_else_is_not_overwritten(folder, capsys):
    assert command.main(["shim", "--write", str(folder)]) == 0  # ours is
    (folder / COMPILED).write_text("theirs")
    (folder / MODULE).unlink()
    with pytest.raises(SystemExit, match="2"):
        command.main(["shim", "--write", str(folder)])
    assert "is somebody else's file: name another folder" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == [COMPILED]
    with pytest.raises(SystemExit, match="2"):
        command.main(["shim", "--write", str(folder / COMPILED)])
    assert "cannot write into" in capsys.readouterr().err


def test_windows_is_told_its_own_way(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shim, "os", SimpleNamespace(name="nt"))
    assert command.main(["shim", "--write", str(tmp_path)]) == 0
    assert f"set PYTHONPATH={tmp_path};%PYTHONPATH%" in capsys.readouterr().out

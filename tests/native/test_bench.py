"""The bench: its arithmetic, and one small run to its files."""

import csv

import pytest
import torch

from native import __main__ as command
from native import autotune, bench, gpu
from native.layers import KERNELS, STAGES


@pytest.fixture(autouse=True)
def one_thread(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    autotune.forget()
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    autotune.forget()


def test_useful_flops_leave_out_the_padding():
    inside = torch.nn.functional.conv2d(torch.ones(1, 1, 9, 9), torch.ones(1, 1, 5, 5), padding=2).sum()
    assert bench.Shape("table 1", 3, 7, 9, 5).useful_flops() == 2 * 3 * 7 * inside


def test_the_shapes_are_table_1_and_the_four_stages():
    shapes = bench.shapes(KERNELS, 4)
    assert len(shapes) == 3 * 10 + 4
    assert {s.channels for s in shapes if s.where == "table 1"} == {384}
    assert [(s.size, s.channels, s.kernel) for s in shapes[-4:]] == list(STAGES)


def test_the_peak_holds_what_a_call_allocates():
    peak = bench.peak_bytes(lambda: torch.zeros(1 << 22))
    if peak is None:
        pytest.skip("the kernel does not tell the peak (Linux's /proc/self/clear_refs)")
    assert peak >= 0.9 * (4 << 22)


def test_a_small_run_writes_a_table_and_a_plot(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "BATCHES", {8: 1, 16: 1})
    monkeypatch.setattr(bench, "STAGES", ((7, 16, 13),))
    options = ["--kernels", "3", "7", "--batch", "1", "--threads", "1", "--seconds", "0.01", "--results", str(tmp_path)]
    assert command.main(["bench", *options]) == 0
    (table,) = (tmp_path / "native").glob("*.csv")
    assert table.with_suffix(".png").stat().st_size > 1000
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (2 * 2 + 1)
    assert all(float(row[f"{way} ms"]) > 0 for row in rows for way in bench.WAYS)
    assert "geometric mean" in capsys.readouterr().out


def test_the_command_line_explains_itself(capsys, monkeypatch):
    assert command.main([]) == 2
    assert command.main(["--help"]) == 0
    assert "bench" in capsys.readouterr().out
    monkeypatch.setitem(command.COMMANDS, "missing", "a command whose module is not there")
    assert command.main(["missing"]) == 1
    assert "native.missing" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--kernels", "4"], ["--threads", "0"], ["--batch", "0"]])
def test_wrong_numbers_are_refused_before_anything_is_timed(wrong, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench.main(wrong)
    assert "--threads and --batch are 1 or more, and --kernels odd" in capsys.readouterr().err


@pytest.mark.skipif(gpu.why_not() is None, reason="it would time this machine's GPU")
def test_without_a_gpu_its_bench_says_why(capsys):
    assert command.main(["bench", "--device", "cuda"]) == 1
    assert capsys.readouterr().out == f"{gpu.why_not()}\n"


def test_an_unknown_command_is_named(capsys):
    assert command.main(["nonesuch"]) == 2
    assert (
        capsys.readouterr().err
        == "native: there is no command 'nonesuch'; choose from check, bench, plan, report, gpu, shim.\n"
    )


def test_a_small_run_over_nets_writes_a_table(tmp_path, capsys):
    options = ["--names", "convnextv2_atto", "--side", "32", "--batch", "1", "--threads", "1", "--seconds", "0.01"]
    assert command.main(["bench", "--nets", *options, "--results", str(tmp_path)]) == 0
    (table,) = (tmp_path / "native").glob("nets-*.csv")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["layout"], row["pass"]) for row in rows] == [
        (layout, name) for layout in ("nchw", "channels_last") for name in bench.PASSES
    ]
    assert all(row["depthwise layers"] == "12" and float(row["accelerated ms"]) > 0 for row in rows)
    assert "least: " in capsys.readouterr().out


def test_a_net_that_timm_does_not_know_is_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["bench", "--nets", "--names", "nonesuch"])
    assert "timm has no model 'nonesuch'" in capsys.readouterr().err


def test_without_linux_nothing_is_asked_for_the_peak(monkeypatch):
    """Windows' ctypes refuses the library of no name with a TypeError."""
    monkeypatch.setattr(bench.Path, "exists", lambda _: False)
    monkeypatch.setattr(bench.ctypes, "CDLL", None)
    assert bench.peak_bytes(dict) is None

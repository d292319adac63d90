"""python -m native gpu: what a GPU is asked, in which order, and what stays of a session that ends early."""

import csv
import os
import sys
from pathlib import Path

import pytest

from native import __main__ as command
from native import bench_gpu, gpu, gpu_plans, gpu_session
from native.gpu_session import PARTS, Part


def python(name, code, seconds=60):
    return Part(name, f"does {name} work?", ("-c", code), seconds)


@pytest.fixture
def session(monkeypatch, tmp_path):
    """Runs parts as on a GPU called gpu; returns the exit status and what stands in the list of parts."""
    monkeypatch.setattr(gpu, "why_not", lambda: None)
    monkeypatch.setattr(bench_gpu, "stem", lambda: "gpu")

    def run(parts, *flags):
        monkeypatch.setattr(gpu_session, "PARTS", tuple(parts))
        status = gpu_session.main(["--results", str(tmp_path), *flags])
        path = tmp_path / "native" / "gpu-parts.csv"
        with path.open() as file:
            return status, [(row["part"], row["status"]) for row in csv.DictReader(file)]

    return run


def test_the_plan_is_printed_without_a_gpu(capsys, tmp_path):
    assert command.main(["gpu", "--dry-run", "--results", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "estimates for an H100, not measurements" in lines[0]
    parts = [line.split(".", 1)[1].split(":")[0].strip() for line in lines[1:] if line[:3].strip().isdigit()]
    assert parts == [part.name for part in PARTS]
    assert not list(tmp_path.iterdir())


def test_the_most_telling_parts_fit_into_eight_minutes():
    first = [part.name for part in PARTS][:6]
    assert first == ["check", "nets", "steps", "layer", "gradients", "tests"]
    assert sum(part.seconds for part in PARTS[:6]) <= 8 * 60


def test_without_a_gpu_it_is_said_in_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr(gpu, "why_not", lambda: "torch sees no NVIDIA GPU here.")
    assert command.main(["gpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "torch sees no NVIDIA GPU here. --dry-run prints what a machine with a GPU would run."


def test_a_part_that_fails_does_not_stop_the_next_and_is_asked_again(session, capfd):
    parts = [python("wrong", "import sys; sys.exit(3)"), python("right", "print('answered')")]
    assert session(parts) == (1, [("wrong", "failed with 3"), ("right", "done")])
    said = capfd.readouterr().out
    assert "left: wrong (failed with 3)" in said
    assert said.count("answered") == 1
    assert session(parts) == (1, [("wrong", "failed with 3"), ("right", "done"), ("wrong", "failed with 3")])
    assert "answered" not in capfd.readouterr().out
    assert session([python("wrong", "")])[0] == 0


def test_other_code_is_asked_again(session, monkeypatch):
    parts = [python("right", "")]
    session(parts)
    monkeypatch.setattr(gpu_session, "code", lambda: "other")
    assert session(parts) == (0, [("right", "done"), ("right", "done")])


def test_what_hangs_is_cut_off_with_its_children(session, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_session, "LATE", 1)
    child = tmp_path / "child"
    code = f"import os, time; pid = os.fork(); pid and open({str(child)!r}, 'w').write(str(pid)); time.sleep(60)"
    assert session([python("hangs", code, 2), python("next", "")]) == (1, [("hangs", "cut off"), ("next", "done")])
    process = Path("/proc", child.read_text(), "stat")
    assert not process.exists() or process.read_text().split()[2] == "Z"


def test_without_groups_of_processes_what_hangs_is_cut_off_too(session, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delattr(os, "killpg")
    monkeypatch.setattr(gpu_session, "LATE", 1)
    assert session([python("hangs", "import time; time.sleep(60)", 1)]) == (1, [("hangs", "cut off")])


def test_what_comes_too_late_does_not_begin(session, capfd):
    assert session([python("late", "")], "--minutes", "0") == (1, [])
    assert "left: late (not begun)" in capfd.readouterr().out


def test_a_tool_that_is_missing_is_named_and_left_out(session, capfd):
    status, found = session([Part("tool", "?", ("no-such-tool",), 1), python("next", "")])
    assert (status, found) == (0, [("next", "done")])
    assert "tool: left out, no-such-tool is not installed" in capfd.readouterr().out


def test_results_and_names_are_filled_in(session, tmp_path):
    code = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
    part = Part("where", "?", ("-c", code, "{results}/here.csv", "of-{stem}"), 60)
    assert session([part])[0] == 0
    assert (tmp_path / "here.csv").read_text() == "of-gpu"


def test_only_the_parts_that_are_named_run(session):
    parts = [python("first", ""), python("second", "")]
    assert session(parts, "--only", "second") == (0, [("second", "done")])


@pytest.mark.parametrize("part", [part for part in PARTS if part.command[:3] == ("-m", "native", "bench")], ids=str)
def test_benches_understand_their_flags(part, capsys, tmp_path, monkeypatch):
    """Up to the point where they need a GPU."""
    from replk_lightning.measure import latency

    given = [word.format(results=tmp_path, stem="gpu") for word in part.command[3:]]
    if given[0] == "--models":
        assert list(latency.groups(latency._parser().parse_args(given[1:])))
    else:
        monkeypatch.setattr(gpu, "why_not", lambda: "no GPU")
        assert command.main(["bench", *given]) == 1
        assert capsys.readouterr().out == "no GPU\n"


def test_the_kernels_of_a_grid_are_those_that_its_cells_launch():
    cells = bench_gpu.grid(["forward", "grad_weight"], ["float16", "tf32"], [3, 31], [64])
    assert len(cells) == 2 * 2 * (3 * 2 + 1)  # three maps, and the stage whose kernel is 31
    found = bench_gpu.launches(cells, gpu_plans.ANY_GPU)
    weights = {"toeplitz_weight", "toeplitz_weight_last"}
    assert {step.entry for step in found} == {"toeplitz_forward", "sum_partials"} | weights
    assert len({(step.source, step.element, step.constants) for step in found}) == len(found)


def test_kernels_are_compiled_side_by_side_and_kept(empty_cache):
    pytest.importorskip("cuda.core", reason="NVRTC compiles without a GPU, but cuda-core is not installed")
    steps = bench_gpu.launches(bench_gpu.grid(["grad_weight"], ["float32"], [3], [1])[:1], gpu_plans.ANY_GPU)
    bench_gpu.precompile(steps, 90)
    kept = {path.name.split("-")[0] for path in (empty_cache / "replk_lightning" / "kernels").iterdir()}
    assert kept == {step.entry for step in steps}

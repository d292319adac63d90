import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ablations.records.record import read_records

ROOT = Path(__file__).resolve().parents[3]
RUN = """
import json, time
start = time.monotonic()
from ablations.commands.run import perform
from ablations.run import main
loaded = time.monotonic()
command = ["guideline2", "--rows", "k3-shortcut", "--seeds", "9", "--accelerator", "cpu", "--results", "results"]
status = main(command)
print(json.dumps({"status": status, "import": loaded - start, "run": time.monotonic() - loaded}))
"""


@pytest.mark.slow
def test_what_is_not_training_takes_three_percent_of_a_small_run_at_most(tmp_path):
    """Seconds of the command beyond those of training and its validation; importing is told apart."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", RUN], cwd=tmp_path, env=environment, capture_output=True, text=True)
    times = json.loads(done.stdout.splitlines()[-1])
    (record,) = read_records(tmp_path / "results/guideline2/runs")
    assert times["status"] == 0
    outside = times["run"] - record.seconds
    print(f"{record.seconds:.1f} s of training, {outside:.2f} s besides, {times['import']:.1f} s of importing")
    assert outside <= 0.03 * times["run"]

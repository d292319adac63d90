import re
import subprocess
import sys
from pathlib import Path

import pytest

from ablations import run
from ablations.commands import options
from ablations.registry import all_ablations, entries, listing
from ablations.scales import SCALES, get_scale

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "lightning", "timm", "numpy", "matplotlib", "optuna")


def test_the_list_is_what_importing_the_tables_gives():
    assert entries() == [(a.name, a.source, a.title) for a in all_ablations().values()]
    assert len(listing().splitlines()) == len(all_ablations())


def test_the_help_says_of_every_scale_what_it_is():
    assert "; ".join(f"{scale.name}: {scale.cost}, {scale.data}" for scale in SCALES.values()) == options.SCALES


@pytest.mark.parametrize("look", ["run --list", "run --help", "reproduce --help", "sweep --help"])
def test_looking_does_not_wait_for_torch(look):
    command, flag = look.split()
    code = f"""
import sys
from ablations.{command} import main
try:
    main(["{flag}"])
except SystemExit:
    pass
print([name for name in sys.modules if name.split(".")[0] in {HEAVY}] or "light", file=sys.stderr)
"""
    resource = pytest.importorskip("resource", reason="this system does not tell the seconds of processes")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "light"
    assert done.stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3  # seconds of its own


def test_the_first_seed_at_small_is_nobodys():
    """Or README's first command would show a stranger our records and train nothing."""
    names = [path.name for path in (ROOT / "results").rglob("*.small.*.json")]
    committed = {int(found[1]) for name in names if (found := re.search(r"\.seed(\d+)\.", name))}
    (first,) = get_scale("small", all_ablations()["guideline2"]).seeds
    assert committed == set(range(first))
    assert f"default: {first} at small (up to {first - 1} are committed)" in run.parser().format_help()

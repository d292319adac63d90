"""Imports point one way: native ← replk_lightning ← ablations."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {"native": {"replk_lightning", "ablations"}, "replk_lightning": {"ablations"}, "ablations": set()}
SOURCES = [path for package in FORBIDDEN for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, function-level imports included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    assert not imported(path) & (FORBIDDEN[package] | {"tests", "pytorch_lightning"})


def test_the_walk_sees_a_wrong_arrow(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from ablations.spec import Row\n")
    assert imported(wrong) == {"ablations"}


def test_every_file_under_the_limit_has_a_docstring():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text)), f"{path} does not say what it is for"
        assert not re.search(r"\butils\b", path.stem), f"{path}: name a file by what it holds"

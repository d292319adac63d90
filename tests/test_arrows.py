"""Imports point one way: native ← replk_lightning ← ablations, within ablations from room to room, in no circle.

Imports within functions and those for types count like any other.
"""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {"native": {"replk_lightning", "ablations"}, "replk_lightning": {"ablations"}, "ablations": set()}
SOURCES = [path for package in FORBIDDEN for path in sorted((ROOT / package).rglob("*.py"))]
ROOMS = (
    ("records", "spec"),
    ("scales", "registry", "paper", "measures"),
    ("runner",),
    ("report",),
    ("tables",),
    ("search",),
    ("commands",),
    ("run", "reproduce", "sweep", "spaces"),
)
"""Of ablations, from the ground up: a room uses what is below it, and itself."""

FLOORS = 9


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


def graph_of(package: Path) -> dict[str, set[str]]:
    """{module: the modules of its package that it imports}."""
    paths = {name_of(path, package): path for path in sorted(package.rglob("*.py"))}
    return {name: uses(path, name, paths.keys()) - {name} for name, path in paths.items()}


def name_of(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def uses(path: Path, name: str, known: set[str]) -> set[str]:
    """Those of the `known` modules that the file of the module `name` imports."""
    here = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = here[: len(here) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {each if each in known else base for each in names}
    return found & known


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in turn; none where there is no such circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def longest_chain(graph: dict[str, set[str]]) -> list[str]:
    """The most modules of which each imports the next."""
    chains: dict[str, list[str]] = {}
    for name in TopologicalSorter(graph).static_order():
        chains[name] = [name, *max((chains[used] for used in graph[name]), key=len, default=[])]
    return max(chains.values(), key=len)


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_modules_import_each_other_in_a_circle(package):
    assert circle_in(graph_of(ROOT / package)) == []


def test_rooms_use_only_what_is_below_them():
    floor = {room: number for number, rooms in enumerate(ROOMS) for room in rooms}
    graph = {name: used for name, used in graph_of(ROOT / "ablations").items() if name != "ablations"}
    rooms = {name: name.split(".")[1] for name in graph}
    assert set(rooms.values()) == set(floor)
    wrong = [
        f"{name} imports {each}"
        for name, used in graph.items()
        for each in used
        if rooms[each] != rooms[name] and floor[rooms[each]] >= floor[rooms[name]]
    ]
    assert wrong == []


def test_ablations_is_nine_floors_high_at_most():
    chain = longest_chain(graph_of(ROOT / "ablations"))
    assert len(chain) <= FLOORS, " > ".join(chain)


def test_circles_and_chains_are_seen_wherever_the_import_stands(tmp_path):
    package = tmp_path / "house"
    (package / "cellar").mkdir(parents=True)
    files = {
        "__init__": "", "roof": "def f():\n    from house import attic\n", "attic": "from .cellar import floor, wine\n",
        "cellar/__init__": "", "cellar/wine": "import house.cellar.floor\n", "cellar/floor": "import os\n",
    }  # fmt: skip
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    assert circle_in(graph_of(package)) == []
    assert longest_chain(graph_of(package)) == ["house.roof", "house.attic", "house.cellar.wine", "house.cellar.floor"]
    (package / "cellar/floor.py").write_text("if TYPE_CHECKING:\n    from .. import attic\n")
    assert set(circle_in(graph_of(package))) >= {"house.attic", "house.cellar.floor"}

"""Which ablations there are: every file of `ablations.tables` is one.

What `--list` prints is read from the tables' source: importing them would import torch, Lightning and timm first.
"""

import ast
import copyreg
import importlib
import pkgutil
from pathlib import Path
from typing import NamedTuple

from ablations.spec import ADDITION, SOURCES, Ablation, SpecError

PACKAGE = "ablations.tables"  # by name, as tables import what is below this file's floor and above it
TABLES = Path(__file__).with_name("tables")


class Entry(NamedTuple):
    """One ablation of the list."""

    name: str
    source: str
    title: str


def place(source: str, name: str) -> tuple[int, int, str]:
    """Sorts sources such as `Table 5`: tables, guidelines, figures, appendices by number; then additions by name."""
    kind, _, number = source.partition(" ")
    if kind == ADDITION:
        return (len(SOURCES), 0, name)
    kinds = SOURCES.index(kind)
    return (kinds, int(number), "") if number.isdigit() else (kinds, 0, number)


def entries() -> list[Entry]:
    """Every ablation of `ablations.tables`, in the paper's order."""
    found = [entry for path in sorted(TABLES.glob("*.py")) for entry in _entries(path)]
    return sorted(found, key=lambda entry: place(entry.source, entry.name))


def _entries(path: Path) -> list[Entry]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    title = (ast.get_docstring(tree) or "").partition("\n\n")[0]
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [
        Entry(function.name, source, title)
        for function in functions
        for decorator in function.decorator_list
        if (source := _source(decorator))
    ]


def _source(decorator: ast.expr) -> str | None:
    """`Table 2` of `@ablation(table=2, …)`, an addition where no number is; None of any other decorator."""
    if not (isinstance(decorator, ast.Call) and getattr(decorator.func, "id", None) == "ablation"):
        return None
    constants = {k.arg: str(k.value.value) for k in decorator.keywords if isinstance(k.value, ast.Constant)}
    return next((f"{kind} {constants[kind.lower()]}" for kind in SOURCES if kind.lower() in constants), ADDITION)


def listing() -> str:
    """A line an ablation: its name, where it stands in the paper, and what it says."""
    return "\n".join(f"{entry.name:<18} {entry.source:<11} {entry.title}" for entry in entries())


def all_ablations() -> dict[str, Ablation]:
    """Every ablation of `ablations.tables`, by name: tables in the paper's order, guidelines, figures, appendices."""
    found: dict[str, Ablation] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__)):
        members = vars(importlib.import_module(f"{PACKAGE}.{module}")).values()
        found.update({member.name: member for member in members if isinstance(member, Ablation)})
    return dict(sorted(found.items(), key=lambda item: place(item[1].source, item[0])))


def get_ablation(name: str) -> Ablation:
    """The ablation called `name`; raises SpecError naming the choices."""
    known = all_ablations()
    if name not in known:
        raise SpecError(f"there is no ablation {name!r}; choose from {', '.join(known)}.")
    return known[name]


copyreg.pickle(Ablation, lambda ablation: (get_ablation, (ablation.name,)))

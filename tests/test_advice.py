"""Sentences for users name flags that there are."""

import ast
import inspect
import re
from pathlib import Path

import lightning
import pytest

from replk_lightning.cli import named_data, named_task

ROOT = Path(__file__).parents[1]
FILES = [
    path for package in ("native", "replk_lightning", "ablations") for path in sorted((ROOT / package).rglob("*.py"))
]
FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*[\w]")
OF_OTHERS = {"--short", "--porcelain", "--untracked-files", "--models", "--nets", "--pair"} | {
    "--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint",
    "--tool", "--error-exitcode", "--report-api-errors",
}  # fmt: skip
"""Git's, three that native's main looks for itself, torchrun's, and compute-sanitizer's."""


def calls_of(tree, name):
    return [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "attr", "") == name]


def strings(node):
    return [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def of_lightning_cli():
    """Flags of `fit`: of what it builds, and those of LightningCLI and Trainer.fit themselves."""
    builds = {"model": named_task, "data": named_data, "trainer": lightning.Trainer}
    named = {f"--{key}.{name}" for key, what in builds.items() for name in inspect.signature(what).parameters}
    named |= {f"--{key}" for key in builds}  # as in f"--model.{name}"
    return named | {"--seed_everything", "--ckpt_path", "--weights_only", "--config", "--print_config", "--help"}


TREES = {path: ast.parse(path.read_text()) for path in FILES}
DECLARED = of_lightning_cli() | {
    flag
    for tree in TREES.values()
    for call in calls_of(tree, "add_argument")
    for arg in call.args
    for flag in strings(arg)
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_flags_that_are_named_exist(path):
    named = {flag for text in strings(TREES[path]) for flag in FLAG.findall(text)}
    assert named - DECLARED - OF_OTHERS == set()


def test_a_flag_that_there_is_not_would_be_found():
    assert "--model.init" in DECLARED
    assert "--out" in DECLARED
    assert FLAG.findall("pass --model.head=false, or --no-head.") == ["--model.head", "--no-head"]
    assert not {"--model.head", "--no-head"} & DECLARED

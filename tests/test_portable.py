"""What systems differ in, of which one is at hand here: read from the source."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for name in ("native", "replk_lightning", "ablations") for path in sorted((ROOT / name).rglob("*.py"))]
REFUSED = set('<>:"|?*\\')
RESERVED = {"con", "prn", "aux", "nul", *(f"{name}{digit}" for name in ("com", "lpt") for digit in range(1, 10))}


def text_of_no_encoding(tree):
    """The lines that open a file as text in whatever encoding the system is set to."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function, given = call.func, {word.arg for word in call.keywords}
        if "encoding" in given:
            continue
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name in ("read_text", "write_text"):
            yield call.lineno
        if name == "open":
            modes = call.args if isinstance(function, ast.Attribute) else call.args[1:]
            modes = [*modes[:1], *(word.value for word in call.keywords if word.arg == "mode")]
            mode = next((mode.value for mode in modes if isinstance(mode, ast.Constant)), None if modes else "r")
            if isinstance(mode, str) and "b" not in mode:  # else a picture's, or somebody else's `open`
                yield call.lineno


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("path.read_text()", True),
        ("path.write_text('×')", True),
        ("path.open()", True),
        ("path.open('w', newline='')", True),
        ("open(name)", True),
        ("open(name, 'a')", True),
        ("path.open(mode='w')", True),
        ("open(name, encoding='utf-8')", False),
        ("path.open('rb')", False),
        ("open(name, 'wb')", False),
        ("Image.open(path)", False),
        ("path.read_text(encoding='utf-8')", False),
    ],
)
def test_what_opens_text_without_an_encoding_is_seen(code, wrong):
    assert bool(list(text_of_no_encoding(ast.parse(code)))) == wrong


def test_every_text_file_has_an_encoding():
    """Windows' default is a code page, without half of what tables hold."""
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in SOURCES
        for line in text_of_no_encoding(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not found


def test_windows_takes_every_files_name():
    """And a disk that does not tell A from a, such as macOS' own."""
    folders = ("native", "replk_lightning", "ablations", "results", "tests")
    paths = [path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*")]
    for path in paths:
        assert not REFUSED & set(path.name)
        assert path.name.partition(".")[0].lower() not in RESERVED
        assert not path.name.endswith((".", " "))
        assert len(str(path)) < 160  # of 260, with the checkout's own
    assert len({str(path).lower() for path in paths}) == len(paths)


def test_a_code_page_without_the_papers_signs_stops_no_command():
    """As where Windows writes into a file; a Cyrillic one has no ×."""
    command = [sys.executable, "-m", "ablations.run", "--list"]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1251"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"guideline2" in done.stdout

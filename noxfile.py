"""Sessions for users and CI; they run in the environment nox itself is installed in, so nothing is installed twice."""

import shutil
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "tests"]


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite: a process a core, each with one thread (about five minutes on two quiet cores)."""
    side_by_side = ("-n", "auto", "--maxprocesses", "4", "--dist", "worksteal")
    which = ("-m", "not slow and not gpu and not network")
    session.run("python", "-m", "pytest", *side_by_side, *which, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def slow(session: nox.Session) -> None:
    """Long searches that the test suite samples."""
    session.run("python", "-m", "pytest", "-m", "slow", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style: ruff's linter and formatter, nothing rewritten."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Types: mypy over the three packages."""
    session.run("mypy")


@nox.session
def types_windows(session: nox.Session) -> None:
    """Types as Windows has Python's own modules."""
    session.run("mypy", "--platform", "win32", "--cache-dir", ".mypy_cache/win32")


@nox.session
def reproduce_tables(session: nox.Session) -> None:
    """What is missing of every table and figure, and one page of them all; flags after `--`, `--help` among them."""
    session.run("python", "-m", "ablations.reproduce", *session.posargs)


@nox.session
def tables_are_current(session: nox.Session) -> None:
    """Render every committed table, figure's numbers and the index from the records; fail on any difference."""
    session.run("python", "-m", "pytest", "tests/ablations/report/test_render.py", "-k", "committed_tables")


@nox.session
def reference(session: nox.Session) -> None:
    """The API reference and its guides, from the docstrings, as pages in runs/reference; a warning fails it."""
    packages = ("native", "replk_lightning", "ablations")
    session.run("python", "-W", "error", "-m", "pdoc", "-d", "google", "-o", "runs/reference", *packages)


@nox.session
def timm_tests(session: nox.Session) -> None:
    """timm's own checks of models over this package's, XL in gigabytes: `nox -s timm_tests -- PATH [pytest's flags]`.

    PATH is a checkout of timm or its sdist (`pip download --no-deps --no-binary timm timm==VERSION`), of the version
    that is installed, for its tests are in no wheel. `--models replknet_3` picks models.
    """
    if not session.posargs:
        session.skip("no path to timm's tests was given: nox -s timm_tests -- PATH")
    source, *flags = session.posargs
    root = Path(source).resolve()
    if root.is_file():
        folder = session.create_tmp()
        shutil.unpack_archive(root, folder, filter="data")
        root = Path(folder, root.name.removesuffix(".tar.gz")).resolve()
    tests = root / "tests" / "test_models.py"
    if not tests.is_file():
        session.skip(f"{tests} is not there: give the path to a checkout of timm or to its sdist")
    suite = ("-p", "timm_suite", "--rootdir", str(root), "-c", str(root / "pyproject.toml"), "-p", "no:cacheprovider")
    session.run("python", "-m", "pytest", *suite, str(tests), *flags, env={"PYTHONPATH": "tests"})


@nox.session
def gpu(session: nox.Session) -> None:
    """All that an NVIDIA GPU is to answer, the most telling first, each part kept; `nox -s gpu -- --dry-run`: the plan.

    Within eight minutes unless told otherwise (`--minutes`); the same command goes on with what is left.
    """
    session.run("python", "-m", "native", "gpu", *session.posargs)

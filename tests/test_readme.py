"""The README and the guides as tutorials: every command and every block of Python in them, in order.

Guides are the docstrings of packages, which the reference shows.

Commands that need data, weights, GPUs or time are given to the real parser, or planned with `--dry-run`; COMMANDS and
BLOCKS say which and why. A command or block that neither knows fails its test until somebody says how it is tested.
"""

import ast
import csv
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import lightning
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.distributed.run import get_args_parser

import ablations.tables
from ablations import run as ablations_run
from ablations.records.record import read_records
from ablations.registry import all_ablations
from ablations.reproduce import parser as reproduce_parser
from ablations.sweep import parser as sweep_parser
from native import gpu_session
from replk_lightning.cli import main as library
from replk_lightning.commands import COMMANDS as COMMANDS_OF_THE_LIBRARY
from replk_lightning.data.hub import offline
from replk_lightning.predict.command import parser as predict_parser
from replk_lightning.pseudo_label.command import parser as pseudo_label_parser

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning calls jsonargparse the old way
ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = (
    "ablations",
    "ablations/search",
    "native",
    "replk_lightning",
    "replk_lightning/data",
    "replk_lightning/predict",
    "replk_lightning/pseudo_label",
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:python3?|nox|torchrun) [^`]+)`")


class Step(NamedTuple):
    """Something that a reader is told to do."""

    file: str
    line: int
    language: str
    text: str

    def __str__(self):
        return f"{self.file}, line {self.line}: {self.text.splitlines()[0][:60]}"


def steps(text, file="README.md"):
    """Commands one by one and blocks whole, in order; commands that are named in a sentence too."""
    found = []
    for fence in FENCE.finditer(text):
        line = text.count("\n", 0, fence.start()) + 2
        if fence[1] != "sh":
            found.append(Step(file, line, fence[1], fence[2]))
            continue
        for number, written in enumerate(fence[2].replace("\\\n", " ").splitlines()):
            words = shlex.split(written, comments=True)
            commands = shlex.join(words).replace("'&&'", "&&").split(" && ") if words else []
            found += [Step(file, line + number, "sh", command) for command in commands]
    prose = FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)
    found += [
        Step(file, prose.count("\n", 0, m.start()) + 1, "sh", m[1].replace("\n", " ")) for m in INLINE.finditer(prose)
    ]
    return found


def only_here(words):
    """Not tested: it makes the environment that the tests run in."""


def installed(words):
    """The extras that it names are declared; installing takes minutes."""
    extras = re.findall(r"\[(\w+)\]", words[-1])
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras) <= set(declared)


def sessions(words):
    """Its sessions are there, its flags parsed; sessions take minutes, and one of them is this test."""
    end = words.index("--") if "--" in words else len(words)
    named, flags = words[words.index("-s") + 1 : end], words[end + 1 :]
    assert named
    if flags:
        (name,) = named
        parser = {"reproduce_tables": reproduce_parser, "gpu": gpu_session.parser}[name]()
        assert not parser.parse_known_args(flags)[1]
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    for name in named:
        assert f"@nox.session\ndef {name}(" in noxfile, f"there is no session {name}"


def planned(words):
    """Planned by `--dry-run`, at scale smoke unless it says paper: training takes minutes to GPU days."""
    arguments = words[words.index("ablations.run") + 1 :]
    scale = [] if "--scale" in arguments else ["--scale", "smoke"]
    assert ablations_run.main([*arguments, *scale, "--dry-run"]) == 0


def run_ablation(words):
    """Run as it is."""
    assert ablations_run.main([*words[3:], "--accelerator", "cpu"]) == 0


def launched(words):
    """torchrun's part parsed by torchrun's parser, the rest planned: several machines are needed."""
    parsed = get_args_parser().parse_args(words[1:])
    assert parsed.module
    planned(["-m", parsed.training_script, *parsed.training_script_args])


def configured(words):
    """Parsed, links between model and data included, and the configuration printed: it needs data and GPUs."""
    assert words[:3] == ["python", "-m", "replk_lightning"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["replk_lightning", *words[3:], "--print_config"])
        with pytest.raises(SystemExit) as stopped:
            library()
    assert stopped.value.code == 0


def parsed_pseudo_label(words):
    """Parsed: it needs a teacher's weights; the tests of pseudo labels run it with others."""
    assert pseudo_label_parser().parse_args(words[4:]).teacher


def parsed_predict(words):
    """Parsed: it needs a trained checkpoint; the tests of predict run it with one."""
    assert predict_parser().parse_args(words[4:]).images


def parsed_look(words):
    """Parsed: it needs weights that are downloaded, or trained; the tests of these commands run them with others."""
    assert import_module(COMMANDS_OF_THE_LIBRARY[words[3]]).parser().parse_args(words[4:]).model


def counted(words):
    """Run as it is."""
    from replk_lightning.commands import complexity

    assert complexity.main(words[4:]) == 0


def parsed_sweep(words):
    """Parsed: trials take minutes."""
    assert sweep_parser().parse_args(words[3:]).objectives


def helped(words):
    """Its help is printed: checks and timings take minutes."""
    from native.__main__ import main as native

    with pytest.raises(SystemExit) as stopped:
        native([*words[3:], "--help"])
    assert stopped.value.code == 0


def wrapped(words):
    """Run on a script of that name that asks timm for the model: timm's own are in no wheel."""
    script = Path(words[4])
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text("import sys, timm; print(timm.is_model(sys.argv[-1]))", encoding="utf-8")
    said = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=True).stdout
    assert said == "True\n"


COMMANDS = {  # how a command is tested that begins so; the longest beginning counts
    "python3 -m venv .venv": only_here,
    ". .venv/bin/activate": only_here,
    "python -m pip install -e": installed,
    "python -m nox -s": sessions,
    "nox -s": sessions,
    "python -m ablations.run": planned,
    "python -m ablations.run --list": run_ablation,
    "python -m ablations.run branches --scale smoke": run_ablation,
    "python -m ablations.sweep": parsed_sweep,
    "torchrun": launched,
    "python -m replk_lightning fit": configured,
    "python -m replk_lightning complexity": counted,
    "python -m replk_lightning erf": parsed_look,
    "python -m replk_lightning export": parsed_look,
    "python -m replk_lightning shape-bias": parsed_look,
    "python -m replk_lightning predict": parsed_predict,
    "python -m replk_lightning pseudo-label": parsed_pseudo_label,
    "python -m native": helped,
    "python -m replk_lightning timm": wrapped,
}


def as_it_is(code):
    """Run."""
    exec(compile(code, "README.md", "exec"), {})


def with_few_channels(code):
    """Run with fewer channels and blocks, on weights of that size: the published ones are not here."""
    create = timm.create_model

    def tiny(name, **options):
        small = {"dims": (8, 16, 32, 64), "depths": (1, 1, 2, 1)} if name.startswith("replknet") else {}
        return create(name, **small, **options)

    torch.save(tiny("replknet_31b").state_dict(), "RepLKNet-31B_ImageNet-1K_224.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", tiny)
        as_it_is(code)


def without_training(code):
    """Run with a trainer that trains nothing and weights without memory: it needs GPUs and 73 million images."""
    given = []

    class Trainer:
        def __init__(self, **flags):
            self.flags = flags

        def fit(self, task, data):
            given.extend((task, data))

    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(lightning, "Trainer", Trainer)
        as_it_is(code)
    task, data = given
    assert task.recipe.name == "xl_semi_supervised"
    assert data.image_size == task.recipe.resolution


def found_as_an_ablation(code):
    """The ablation of its own: found where it lies; the command after it runs it."""
    assert "branches" in all_ablations()
    assert all(len(line) <= 120 for line in code.splitlines())


BLOCKS = {  # how a block of Python is tested that holds this
    "MultiTaskData.for_recipe": without_training,
    "@ablation(": found_as_an_ablation,
    "features_only=True": with_few_channels,
    "DepthwiseConv2d(": as_it_is,
}


def treatment(step):
    """What tests `step`; raises LookupError."""
    if step.language == "sh":
        return COMMANDS[max((known for known in COMMANDS if step.text.startswith(known)), key=len)]
    if step.language == "python":
        (found,) = [how for content, how in BLOCKS.items() if content in step.text]
        return found
    raise LookupError(step.language)


def guide(package):
    """The docstring of `package`."""
    source = (ROOT / package / "__init__.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source), clean=False)


STEPS = steps(TEXT) + [step for package in GUIDES for step in steps(guide(package), f"{package}/__init__.py")]


def picture(path, size=(8, 8), channels=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (*size, channels) if channels > 1 else size
    Image.fromarray(np.ones(shape, np.uint8)).save(path)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A reader's folder, with data of the official form under its `data`, and the README's ablation in place."""
    folder = tmp_path_factory.mktemp("reader")
    for split, ade in (("train", "training"), ("val", "validation")):
        picture(folder / "data/imagenet" / split / "class" / "1.png")
        picture(folder / "data/ADEChallengeData2016/images" / ade / "1.jpg")
        picture(folder / "data/ADEChallengeData2016/annotations" / ade / "1.png", channels=1)
    (example,) = [step.text for step in STEPS if step.language == "python" and "@ablation(" in step.text]
    (folder / "tables").mkdir()
    (folder / "tables" / "branches.py").write_text(example, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, offline():
        patch.chdir(folder)
        patch.setattr(ablations.tables, "__path__", [*ablations.tables.__path__, str(folder / "tables")])
        yield folder
    sys.modules.pop("ablations.tables.branches", None)


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_the_readme_can_be_followed(step, reader):
    try:
        how = treatment(step)
    except (LookupError, ValueError):
        pytest.fail(f"{step}: say in COMMANDS or BLOCKS how this is tested")
    try:
        if step.language == "sh":
            how(shlex.split(step.text.replace("/data/", f"{reader}/data/")))
        else:
            how(step.text)
    except (Exception, SystemExit) as failure:
        raise AssertionError(f"{step}: does not work any more ({how.__doc__})") from failure


def test_the_readmes_ablation_has_trained_its_rows_and_got_a_verdict(reader):
    if not (reader / "runs/smoke/branches").exists():  # this test alone
        run_ablation(["python", "-m", "ablations.run", "branches", "--scale", "smoke"])
    records = read_records(reader / "runs/smoke/branches/runs")
    assert [record.row for record in records] == ["branch3", "branch5", "branch7"]
    assert all(record.status == "done" for record in records)
    table = (reader / "runs/smoke/branches/table.md").read_text()
    assert "Addition to the paper." in table
    assert re.search(r"\| 3×3 is the best of the three \| — \| one seed: [+−][0-9.]+ points \|", table)


def test_the_verdicts_on_the_front_page_are_those_of_the_results():
    index = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    judged = [line.strip("| ").split(" | ") for line in index.splitlines() if line.startswith("| [")]
    judged = [(name.replace("](", "](results/"), says, here, on) for name, says, here, *_, on in judged]
    shown = [tuple(line.strip("| ").split(" | ")) for line in TEXT.splitlines() if line.startswith("| [")]
    assert len(shown) > 5
    assert set(shown) <= set(judged)


def test_the_front_page_counts_the_verdicts_of_the_results():
    with (ROOT / "results" / "verdicts.csv").open(encoding="utf-8", newline="") as file:
        words = Counter(row["verdict"].removesuffix(" †") for row in csv.DictReader(file) if row["seeds"])
    said = re.search(r"Of the (\d+) sentences with seeds, (\d+) hold here, (\d+) fail and (\d+) are\s+undecided", TEXT)
    assert tuple(map(int, said.groups())) == (words.total(), words["holds"], words["fails"], words["undecided"])


def test_the_front_page_is_short():
    assert len(TEXT.splitlines()) <= 200


@pytest.mark.parametrize(
    "text",
    ["```sh\npip install x\n```\n", "```python\nx = 1\n```\n", "```toml\nx = 1\n```\n", "See `python -m nonesuch`.\n"],
)
def test_what_nobody_has_classified_is_found(text):
    (step,) = steps(text)
    with pytest.raises((LookupError, ValueError)):
        treatment(step)


def test_commands_are_taken_apart():
    found = steps('Run:\n```sh\na -b "c d" && d \\\n  -e  # why\n\nf\n```\n')
    assert [step.text for step in found] == ["a -b 'c d'", "d -e", "f"]
    assert found[0].line == 3

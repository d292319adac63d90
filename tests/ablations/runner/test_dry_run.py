"""`--scale paper` by dry run: every row of every table and figure, checked against numbers written down here."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from ablations.registry import all_ablations
from ablations.run import main
from ablations.runner.dry_run import dry_run
from ablations.runner.machine import Machine
from ablations.runner.plan import plan
from ablations.scales import PAPER
from replk_lightning.recipes import RECIPES

ROWS = [(name, row) for name, ablation in all_ablations().items() for row in ablation.rows]


class Long(NamedTuple):
    """How a recipe is trained: GPUs, images a step over all of them, optimizer steps, and on what."""

    gpus: int
    batch: int
    steps: int
    data: str


LENGTHS = {
    "mobilenetv2_100ep": Long(8, 256, 100 * 5004, "imagenet-1k"),
    "replknet_120ep": Long(32, 2048, 120 * 625, "imagenet-1k"),
    "replknet_300ep": Long(32, 2048, 300 * 625, "imagenet-1k"),
    "replknet_finetune_384": Long(32, 1024, 30 * 1251, "imagenet-1k"),
    "replknet_22k_finetune_224": Long(16, 512, 30 * 2502, "imagenet-1k"),
    "replknet_22k_finetune_384": Long(32, 512, 30 * 2502, "imagenet-1k"),
    "xl_semi_supervised": Long(64, 2048, 15 * 625, "imagenet-1k"),  # Appendix A's data are private
    "xl_finetune_320": Long(32, 1024, 30 * 1251, "imagenet-1k"),
    "deeplabv3plus_cityscapes_80k": Long(4, 8, 80_000, "cityscapes"),
    "upernet_cityscapes_80k": Long(8, 16, 80_000, "cityscapes"),
    "upernet_ade20k_80k": Long(8, 16, 80_000, "ade20k"),
    "upernet_ade20k_160k": Long(8, 16, 160_000, "ade20k"),
    "upernet_ade20k_160k_640": Long(8, 16, 160_000, "ade20k"),
    "upernet_ade20k_160k_xl": Long(8, 16, 160_000, "ade20k"),
    "fcos_2x": Long(8, 16, 24 * 7329, "coco"),
    "cascade_mask_rcnn_3x": Long(16, 16, 36 * 7329, "coco"),
    "cascade_mask_rcnn_3x_22k": Long(16, 16, 36 * 7329, "coco"),
    "cascade_mask_rcnn_3x_31l": Long(16, 16, 36 * 7329, "coco"),
    "cascade_mask_rcnn_3x_xl": Long(4, 16, 36 * 7329, "coco"),
}
SIZES = {"imagenet-1k": "1281167", "cityscapes": "2975", "ade20k": "20210", "coco": "117266"}

PARAMETERS = {  # of nets as they are trained: facts.md's for RepLKNet, timm's for the others
    "replknet_3": 71_906_408,
    "replknet_7": 72_712_552,
    "replknet_13": 74_156_392,
    "replknet_25": 78_709_096,
    "replknet_31b": 79_864_168,
    "replknet_31l": 172_671_016,
    "replknet_xl": 335_435_752,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}


STARTS = {  # what some of the runs start from
    ("table5", "replknet31", "upernet_ade20k_80k"): "from what this row's classifier ends with",
    ("table6", "replknet31l-22k-384", "replknet_22k_finetune_384"): (
        "from the result of replknet_pretrain_22k on imagenet-22k, 311940 steps of 4096 images on 128 devices, "
        "given with --init replknet31l-22k-384=PATH"
    ),
    ("table7", "replknet31b", "upernet_cityscapes_80k"): (
        "from the result of replknet_300ep on imagenet-1k, 187500 steps of 2048 images on 32 devices, "
        "given with --init replknet31b=PATH"
    ),
    ("table9", "replknetxl", "cascade_mask_rcnn_3x_xl"): (
        "from the result of xl_semi_supervised on megdata73m, 534660 steps of 2048 images on 64 devices, "
        "given with --init replknetxl=PATH"
    ),
    ("figure5", "swin-b", "replknet_120ep"): "from the published weights, given with --init swin-b=PATH",
}


def outline():
    """What a dry run of everything prints, one entry a run: {(ablation, row, recipe): its lines, with its data}."""
    runs = [run for a in all_ablations().values() if not a.records_of for run in plan(a, a.rows, PAPER)]
    text = dry_run(runs, Machine(devices="auto"), Path("nowhere"))
    found, data = {}, ""
    for block in re.split(r"\n(?=\S)", text):
        if block.startswith("data: "):
            data = block
            continue
        name, row = re.match(r"(\w+) (\S+), scale paper, seed 0\n", block).groups()
        found[name, row, re.search(r"  recipe  name=(\w+)", block)[1]] = f"{data}\n{block}"
    assert len(found) == len(runs)
    return found


def its_recipes(ablation, row):
    """Names of the recipes that the table asks of the row, in order."""
    if row.gain or not (row.trained or ablation.measure):
        return []
    asked = [(row.recipe or ablation.recipe)().name] if ablation.has("train") else []
    transfer = row.transfer or ablation.transfer
    return asked + ([transfer().name] if transfer else [])


def test_every_row_is_planned_whole(monkeypatch):
    # one test, as the outline is made once for all rows, and test processes share nothing
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("planning asks the network"))
    planned = outline()
    for name, row in ROWS:
        try:
            check_row(planned, all_ablations()[name], row)
        except AssertionError as error:
            raise AssertionError(f"{name}, row {row.key}: {error}") from error
    for run, start in STARTS.items():
        assert f"  start   {start}\n" in planned[run], run


def check_row(planned, ablation, row):
    home = next(home for home in ablation.homes if row.gain or row.key in {r.key for r in home.rows})
    expected = sorted(its_recipes(home, row), key=_dense)
    shown = [text for (name, key, _), text in planned.items() if name == home.name and key == row.key]
    assert [re.search(r"recipe  name=(\w+)", text)[1] for text in shown] == expected
    for recipe, text in zip(expected, shown, strict=True):
        check_run(row, recipe, text, measured=not row.trained or (row.published and home.measure is not None))


def _dense(recipe):
    return hasattr(RECIPES[recipe](), "head")


def check_run(row, recipe, text, measured):
    long = LENGTHS[recipe]
    dense = hasattr(RECIPES[recipe](), "head")
    assert re.match(rf"data: {long.data}, {SIZES[long.data]} images", text)
    assert f"  model   {row.model} {row.options}, " in text
    parameters = int(re.search(r"([\d,]+) parameters", text)[1].replace(",", ""))
    if not dense and not row.options and row.model in PARAMETERS:
        assert parameters == PARAMETERS[row.model]
    assert parameters > (PARAMETERS.get(row.model, 3e6) * 0.95 if dense else 3e6)
    overridden = {"epochs": 0} if measured else {}
    for field, value in (vars(RECIPES[recipe]()) | overridden).items():
        assert value in (None, 0, False) or f"{field}={value}" in text, field
    if measured:
        assert "steps   none, measured as it is" in text
    else:
        printed = re.search(r"  steps   (\d+).*, (\d+) images each on (\d+) devices, learning rate (\S+)$", text)
        assert [int(number) for number in printed.groups()[:3]] == [long.steps, long.batch, long.gpus]
        assert float(printed[4]) == RECIPES[recipe]().lr


def test_every_recipe_that_a_row_asks_for_has_its_length_here():
    asked = {recipe for name, row in ROWS for recipe in its_recipes(all_ablations()[name], row)}
    assert asked == set(LENGTHS)
    assert set(RECIPES) - asked == {"replknet_pretrain_22k"}  # no row trains it: what it trains is given with --init


def test_rows_without_a_run_are_named(capsys):
    assert main(["table6", "--scale", "paper", "--rows", "swin-b-224", "swin-b-384", "--dry-run"]) == 0
    assert capsys.readouterr().out == "nothing to train at this scale: swin-b-224, swin-b-384\n"


def test_what_is_recorded_already_is_said(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command = ["guideline2", "--scale", "smoke", "--accelerator", "cpu", "--rows", "k3-plain"]
    assert main(command) == 0
    assert main([*command, "k3-shortcut", "--dry-run"]) == 0
    blocks = re.split(r"\n(?=guideline2 )", capsys.readouterr().out)
    said = {block.split()[1]: "seed0.json: there already" in block for block in blocks if block[:10] == "guideline2"}
    assert said == {"k3-plain,": True, "k3-shortcut,": False}

"""Rows and seeds become runs."""

import argparse
from collections.abc import Sequence

from ablations.runner.runs import Run, transfer_of
from ablations.scales import get_scale
from ablations.spec import Ablation, Row, SpecError


def plan(ablation: Ablation, rows: Sequence[Row], arguments: argparse.Namespace) -> list[Run]:
    """Every training run of `rows` that the command names, seeds outermost so that whole tables come early."""
    scale = get_scale(arguments.scale, ablation)
    seeds = list(dict.fromkeys(arguments.seeds or scale.seeds))
    if not all(0 <= seed < 2**32 for seed in seeds):
        raise SpecError(f"seeds are whole numbers from 0 to 2³² − 1, not {min(seeds)}.")
    init = dict(entry.partition("=")[::2] for entry in arguments.init)
    ablation.select(list(init))
    if arguments.from_scratch and (init or not ablation.has("transfer")):
        reason = "--init names what to start from" if init else f"{ablation.name} carries nothing over"
        raise SpecError(f"--from-scratch is for segmentation and detection without pre-training; {reason}.")
    rows = [row for row in rows if row.trained or ablation.measure]
    rows = [row for row in rows if not row.published or scale.name == "paper"]
    data = arguments.data or scale.data
    runs: list[Run] = []
    for seed in seeds:
        for row in rows:
            run = Run(ablation, row, scale, data, seed, None if ablation.has("transfer") else init.get(row.key))
            transfer = transfer_of(run, arguments.transfer_data, init.get(row.key), arguments.from_scratch)
            runs += [run] if ablation.has("train") and not arguments.from_scratch else []
            runs += [transfer] if transfer else []
    return runs

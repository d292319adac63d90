"""Rows and seeds become runs."""

from collections.abc import Mapping, Sequence

from ablations.runner.runs import Run, transfer_of
from ablations.spec import Ablation, Row, Scale, SpecError


def plan(
    ablation: Ablation,
    rows: Sequence[Row],
    scale: Scale,
    *,
    seeds: Sequence[int] = (),
    data: str | None = None,
    transfer_data: str | None = None,
    init: Mapping[str, str] | None = None,
    from_scratch: bool = False,
) -> list[Run]:
    """Every training run of `rows`, seeds outermost so that whole tables come early; raises SpecError.

    Seeds and data are the scale's unless given. `init` is checkpoints to start from, by row; `from_scratch` segments or
    detects without pre-training, and trains nothing else.
    """
    seeds, init = list(dict.fromkeys(seeds or scale.seeds)), init or {}
    if not all(0 <= seed < 2**32 for seed in seeds):
        raise SpecError(f"seeds are whole numbers from 0 to 2³² − 1, not {min(seeds)}.")
    ablation.select(list(init))
    if from_scratch and (init or not ablation.has("transfer")):
        reason = "--init names what to start from" if init else f"{ablation.name} carries nothing over"
        raise SpecError(f"--from-scratch is for segmentation and detection without pre-training; {reason}.")
    rows = [row for row in rows if row.trained or ablation.measure]
    rows = [row for row in rows if not row.published or scale.name == "paper"]
    runs: list[Run] = []
    for seed in seeds:
        for row in rows:
            given = None if ablation.has("transfer") else init.get(row.key)
            run = Run(ablation, row, scale, data or scale.data, seed, given)
            transfer = transfer_of(run, transfer_data, init.get(row.key), from_scratch)
            runs += [run] if ablation.has("train") and not from_scratch else []
            runs += [transfer] if transfer else []
    return runs

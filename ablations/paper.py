"""What the paper prints: `paper.toml`, by ablation, row and metric."""

import tomllib
from functools import cache
from pathlib import Path

from ablations.records.schema import misfit
from ablations.spec import Ablation, SpecError

PAPER_TOML = Path(__file__).with_name("paper.toml")
PaperNumbers = dict[str, dict[str, dict[str, float]]]  # ablation → row → metric → value
Values = dict[str, dict[str, float]]  # metric → row → value


@cache
def paper_numbers(path: Path = PAPER_TOML) -> PaperNumbers:
    """What the paper prints; raises SpecError for a file that says something else."""
    try:
        numbers = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"{path} cannot be read: {error}.") from error
    if wrong := misfit(numbers, PaperNumbers, path.stem):
        raise SpecError(f"{path} holds the paper's numbers by ablation, row and metric, but {wrong}.")
    return numbers


def paper_values(ablation: Ablation) -> Values:
    """What the paper prints for `ablation`."""
    rows = {row: of for home in ablation.homes for row, of in paper_numbers().get(home.name, {}).items()}
    values = {
        m.key: {row: numbers[m.key] for row, numbers in rows.items() if m.key in numbers} for m in ablation.metrics
    }
    for row in ablation.rows:
        for of in values.values():
            if row.gain and of.keys() >= set(row.gain):
                of[row.key] = of[row.gain[0]] - of[row.gain[1]]
    return values

"""How sure a few seeds make us that a margin is above zero, and how many more would decide it.

A seed shuffles the data of all rows alike, so seeds are pairs: each is a vector of all rows' numbers. Given them, the
rows' true means are drawn, with a flat prior and normal noise of unknown covariance. For a margin that is linear in the
rows this is exactly Student's t; for a least of several margins it is the same idea.

A sentence holds at a probability of 0.995 and fails at 0.005. Who adds seeds from 3 to 20 until a word falls then says
"holds" without an effect in three studies of a hundred; at 0.975 it would be eleven. What no seed has shown, such as a
net in ten that collapses, is not foreseen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from ablations.spec import Claim

Values = Mapping[str, Mapping[str, float]]  # metric → row → value

SURE = 0.995
INTERVAL = 0.95
DRAWS = 20_000
MOST = 99
"""More seeds than these are not counted out."""


@dataclass(frozen=True)
class Verdict:
    """What is known of a claim's margin, in the claim's unit.

    Attributes:
        margin: of the means over the seeds.
        seeds: how many; 0 for a count or a timing, which have none.
        low, high: the central 95 % interval; NaN of fewer than two seeds.
        probability: that the true margin is above zero; NaN of fewer than two seeds.
    """

    margin: float
    seeds: int = 0
    low: float = math.nan
    high: float = math.nan
    probability: float = math.nan

    @property
    def word(self) -> str:
        """`holds`, `fails` or `undecided`; one seed gives no word, and what has no seeds is what it is."""
        if self.seeds == 0:
            return "holds" if self.margin > 0 else "fails"
        if self.seeds == 1:
            return "one seed"
        if self.probability >= SURE:
            return "holds"
        return "fails" if self.probability <= 1 - SURE else "undecided"

    @property
    def more_seeds(self) -> int | None:
        """How many more would decide it, should margin and spread stay as they are; None if unknown or over `MOST`."""
        if self.seeds < 2 or self.word != "undecided":
            return None
        half = (self.high - self.low) / 2
        spread = half * math.sqrt(self.seeds) / stats.t.ppf((1 + INTERVAL) / 2, self.seeds - 1)
        enough = (
            seeds
            for seeds in range(self.seeds + 1, self.seeds + MOST + 1)
            if abs(self.margin) * math.sqrt(seeds) >= spread * stats.t.ppf(SURE, seeds - 1)
        )
        return next((seeds - self.seeds for seeds in enough), None)


def judge(claim: Claim, seeds: Sequence[Values]) -> Verdict:
    """The verdict on `claim` given what each seed measured, all of them the same rows and metrics or more."""
    cells = [(metric, row) for metric in seeds[0] for row in seeds[0][metric]]
    cells = [(metric, row) for metric, row in cells if all(row in each.get(metric, {}) for each in seeds)]
    measured = np.array([[each[metric][row] for metric, row in cells] for each in seeds])

    def margin(numbers: np.ndarray) -> Any:
        values: dict[str, dict[str, Any]] = {}
        for (metric, row), number in zip(cells, numbers.T, strict=True):
            values.setdefault(metric, {})[row] = number
        return claim.margin(values)

    mean = float(margin(measured.mean(0)))
    if len(seeds) < 2:
        return Verdict(mean, len(seeds))
    margins = margin(draws(measured))
    low, high = np.quantile(margins, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return Verdict(mean, len(seeds), float(low), float(high), float((margins > 0).mean()))


def draws(measured: np.ndarray, count: int = DRAWS) -> np.ndarray:
    """Draws of the true means, (seeds, cells) → (count, cells); the same ones for the same numbers."""
    random, n = np.random.default_rng(0), len(measured)
    mean = measured.mean(0)
    z, chi2 = random.standard_normal((count, n)), random.chisquare(n - 1, (count, 1))
    drawn: np.ndarray = mean + z @ (measured - mean) / math.sqrt(n) / np.sqrt(chi2)
    return drawn

"""Margins' posterior: Student's t where it is exact, and how often a word falls where nothing is there."""

import math

import numpy as np
import pytest
from scipy import stats

from ablations.report.posterior import SURE, Verdict, draws, judge
from ablations.spec import Claim, least
from ablations.tables.guideline2 import guideline2

ROWS = ("k3-shortcut", "k13-shortcut", "k3-plain", "k13-plain")
TRIES = 20_000
FIRST, LAST = 3, 20


def seeds_of(numbers):
    """(seeds, rows) → what `judge` takes."""
    return [{"top1": dict(zip(ROWS, map(float, row), strict=False))} for row in numbers]


def claim(margin):
    return Claim("the sentence", margin, guideline2)


@pytest.mark.parametrize("seeds", [2, 3, 5, 12])
def test_a_linear_margin_is_students_t(seeds):
    numbers = np.random.default_rng(seeds).normal((91, 90, 80, 78), 2, (seeds, 4))
    found = judge(claim(lambda top1: (top1["k3-plain"] - top1["k13-plain"]) / 2), seeds_of(numbers))
    margins = (numbers[:, 2] - numbers[:, 3]) / 2
    posterior = stats.t(seeds - 1, margins.mean(), margins.std(ddof=1) / math.sqrt(seeds))
    assert found.margin == pytest.approx(margins.mean())
    assert found.probability == pytest.approx(posterior.sf(0), abs=0.01)
    half = posterior.interval(0.95)[1] - margins.mean()
    assert found.low == pytest.approx(margins.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(margins.mean() + half, abs=0.1 * half)


def test_a_seed_shifts_all_rows_alike():
    shared = np.random.default_rng(0).normal((91.0, 90.0), 0) + np.random.default_rng(0).normal(0, 30, (4, 1))
    found = judge(claim(lambda top1: top1["k3-shortcut"] - top1["k13-shortcut"]), seeds_of(shared))
    assert found.word == "holds"
    assert found.high - found.low == pytest.approx(0, abs=1e-9)


def test_the_least_of_two_margins_is_less_sure_than_either():
    numbers = np.random.default_rng(1).normal((91, 90, 80, 79), 0.5, (4, 4))
    first, second = (lambda top1: top1[ROWS[0]] - top1[ROWS[1]]), (lambda top1: top1[ROWS[2]] - top1[ROWS[3]])
    both = judge(claim(lambda top1: least(first(top1), second(top1))), seeds_of(numbers))
    alone = [judge(claim(each), seeds_of(numbers)).probability for each in (first, second)]
    assert both.probability <= min(alone)
    assert both.probability == pytest.approx(np.prod(alone), abs=0.05)


def test_the_same_numbers_give_the_same_draws():
    numbers = np.random.default_rng(2).normal(size=(3, 4))
    assert np.array_equal(draws(numbers), draws(numbers.copy()))


@pytest.mark.parametrize(
    ("verdict", "word"),
    [
        (Verdict(0.1), "holds"),
        (Verdict(-0.1), "fails"),
        (Verdict(5.0, seeds=1), "one seed"),
        (Verdict(1.0, 3, 0.1, 2, SURE), "holds"),
        (Verdict(-1.0, 3, -2, -0.1, 1 - SURE), "fails"),
        (Verdict(1.0, 3, -0.1, 2, 0.99), "undecided"),
    ],
)
def test_words(verdict, word):
    assert verdict.word == word


@pytest.mark.parametrize("seeds", [3, 4, 6])
def test_so_many_more_seeds_of_the_same_kind_decide(seeds):
    # seeds whose deviations are scaled so that mean and spread stay as they are when more come
    random = np.random.default_rng(seeds)

    def study(n):
        noise = random.normal(size=n)
        return 1.0 + 1.3 * (noise - noise.mean()) / noise.std(ddof=1)

    margin = claim(lambda top1: top1["k3-shortcut"])
    now = judge(margin, seeds_of(study(seeds)[:, None]))
    assert now.word == "undecided"
    assert judge(margin, seeds_of(study(seeds + now.more_seeds)[:, None])).probability == pytest.approx(SURE, abs=0.005)
    assert judge(margin, seeds_of(study(seeds + now.more_seeds + 3)[:, None])).word == "holds"


def test_what_more_seeds_would_not_decide_is_not_promised():
    assert Verdict(0.001, 3, -5.0, 5.0, 0.5).more_seeds is None
    assert Verdict(1.0, 3, 0.5, 1.5, 1.0).more_seeds is None


def wrong_words(margins):
    """Shares of studies (tries, seeds) called `holds` and `fails` by who adds seeds until a word falls."""
    decided = np.zeros(len(margins))
    for n in range(FIRST, LAST + 1):
        t = margins[:, :n].mean(1) / (margins[:, :n].std(1, ddof=1) / math.sqrt(n))
        decided = np.where((decided == 0) & (abs(t) >= stats.t.ppf(SURE, n - 1)), np.sign(t), decided)
    return (decided > 0).mean(), (decided < 0).mean()


RANDOM = np.random.default_rng(3)
NOTHING = {
    "normal": RANDOM.standard_normal((TRIES, LAST)),
    "heavy tails": RANDOM.standard_t(3, (TRIES, LAST)),
    "very heavy tails": RANDOM.standard_cauchy((TRIES, LAST)),
    "unequal variances": RANDOM.standard_normal((TRIES, LAST)) - 5 * RANDOM.standard_normal((TRIES, LAST)),
}


@pytest.mark.parametrize("noise", NOTHING)
def test_who_adds_seeds_until_a_word_falls_is_rarely_wrong(noise):
    assert max(wrong_words(NOTHING[noise])) <= 0.05


def test_a_word_falls_where_there_is_an_effect():
    held, failed = wrong_words(2 + NOTHING["normal"])
    assert held > 0.99
    assert failed < 0.001

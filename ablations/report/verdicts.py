"""Whether the paper's sentences hold on our numbers, seed by seed."""

from ablations.records.record import FROM_SCRATCH
from ablations.report.formats import NOT_RUN, STALE, yes_no
from ablations.report.results import Results, Setting
from ablations.spec import Claim


def verdict(claim: Claim, results: Results, setting: Setting) -> str:
    """`holds`, `fails`, `undecided (2 of 3 seeds)`, or `—` where numbers are missing; † where stale ones decide."""
    found, current = _verdict(claim, results, setting), results.current
    if current is results or (setting in current.by_setting and found == _verdict(claim, current, setting)):
        return found
    return found if found == NOT_RUN else found + STALE


def _verdict(claim: Claim, results: Results, setting: Setting) -> str:
    settings, decided = evidence(results, setting), by_seed(claim, results, setting)
    if results.seeds(setting) and not decided:
        return NOT_RUN
    on_means = claim.holds(results.values(settings, decided))
    if all(held == on_means for held in decided.values()):
        return yes_no(on_means)
    return f"undecided ({sum(decided.values())} of {len(decided)} seeds)"


def by_seed(claim: Claim, results: Results, setting: Setting) -> dict[int, bool]:
    """Whether the claim holds, by every seed that decides it: others lack rows, and must not weigh in a mean."""
    settings = evidence(results, setting)
    found = {seed: claim.holds(results.values(settings, [seed])) for seed in results.seeds(setting)}
    return {seed: held for seed, held in found.items() if held is not None}


def evidence(results: Results, setting: Setting) -> set[Setting]:
    """Whose numbers a claim sees beside those of `setting`; counts belong to no machine and serve every setting."""
    return {setting, *partners(results, setting), *results.settings("count")}


def partners(results: Results, setting: Setting) -> list[Setting]:
    """Where the nets trained in `setting` were carried over to."""
    transfers = results.settings("transfer") if setting.kind == "train" else []
    carried = [s for s in transfers if not (s.data or "").endswith(FROM_SCRATCH)]
    return [s for s in carried if (s.scale, s.hardware) == (setting.scale, setting.hardware)]


def judged(results: Results) -> list[Setting]:
    """The settings that claims are evaluated in: a column each."""
    main = "train" if results.ablation.has("train") else "transfer"
    return results.settings(main) + results.settings("timing") or results.settings("count")

"""Table 2 from votes: wins, decided votes and win rates with intervals, and how far raters agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from oneforcing_jax.errors import InputError, MissingPackage
from oneforcing_jax.evaluation.raters.draw import Draw
from oneforcing_jax.evaluation.raters.votes import Vote, wrong_checks

RESAMPLES = 10_000
# What a vote says, in the order of the counts.
OUTCOMES = ("ours", "baseline", "tie")


def analyse(drawn: Draw, votes: list[Vote]) -> dict[str, Any]:
    """All figures, as JSON holds them.

    Raises:
      InputError: no vote that counts.
      MissingPackage: krippendorff is not installed.
    """
    wrong = wrong_checks(drawn, votes)
    raters = sorted({vote.rater for vote in votes})
    out = [rater for rater in raters if wrong[rater] > drawn.wrong]
    kept = [rater for rater in raters if rater not in out]
    counted = [v for v in votes if v.rater in kept and v.pair not in drawn.checks]
    if not counted:
        raise InputError(
            f"expected votes that count, found {len(votes)} votes and none; collect some"
        )
    said = _outcomes(drawn, counted, kept)
    decided = [vote.choice for vote in counted if vote.choice != "tie"]
    return {
        "draw": drawn.hash,
        "ours": drawn.ours,
        "votes": len(counted),
        "complete": len(counted) == drawn.needed,
        "raters": {str(r): {"wrong_checks": wrong[r], "counts": r in kept} for r in raters},
        "baselines": {name: _baseline(said[name]) for name in drawn.baselines},
        "agreement": agreement(np.concatenate(list(said.values()))),
        "left": decided.count("left") / len(decided) if decided else None,
    }


def _outcomes(drawn: Draw, votes: list[Vote], raters: list[int]) -> dict[str, np.ndarray]:
    """By baseline, int [prompts, raters]: the number of an outcome, -1 where there is no vote."""
    said = {name: np.full((len(drawn.prompts), len(raters)), -1) for name in drawn.baselines}
    for vote in votes:
        pair = drawn.pairs[vote.pair]
        outcome = "tie" if vote.choice == "tie" else OUTCOMES[vote.choice != pair.ours]
        said[pair.baseline][pair.prompt, raters.index(vote.rater)] = OUTCOMES.index(outcome)
    return said


def _baseline(said: np.ndarray) -> dict[str, Any]:
    """A row of Table 2 from outcomes [prompts, raters]."""
    wins, losses, ties = (int((said == n).sum()) for n in range(3))
    decided = wins + losses
    low, high = interval(said) if decided else (None, None)
    rate = wins / decided if decided else None
    return {"wins": wins, "losses": losses, "ties": ties, "decided": decided, "rate": rate,
            "low": low, "high": high}  # fmt: skip


def interval(said: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The interval of 95% of the win rate, bootstrapped over prompts and raters at once.

    Prompts and raters are drawn with replacement, independently; a vote counts as often as its prompt times
    its rater were drawn.

    Args:
      said: outcomes, int [prompts, raters].
      seed: of the resamples.
    """
    rng = np.random.default_rng(seed)
    prompts, raters = (rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) for n in said.shape)
    wins, losses = (np.einsum("np,pr,nr->n", prompts, said == n, raters) for n in range(2))
    decided = wins + losses
    low, high = np.percentile((wins / np.maximum(decided, 1))[decided > 0], (2.5, 97.5))
    return float(low), float(high)


def agreement(said: np.ndarray) -> dict[str, float | None]:
    """How far raters agree on ours, baseline or tie: Krippendorff's alpha of nominal values, and the share of
    pairs of votes on the same pair that are equal.

    Args:
      said: outcomes, int [pairs, raters].
    """
    counts = np.stack([(said == n).sum(1) for n in range(3)], 1)
    votes = counts.sum(1)
    couples = (votes * (votes - 1)).sum()
    if not couples:
        return {"alpha": None, "equal": None}
    equal = float((counts * (counts - 1)).sum() / couples)
    # Where everybody always says the same, nothing was to agree on, and alpha is not defined.
    alpha = _alpha(counts) if (counts[votes > 1].sum(0) > 0).sum() > 1 else None
    return {"alpha": alpha, "equal": equal}


def _alpha(counts: np.ndarray) -> float:
    try:
        import krippendorff
    except ImportError as error:
        raise MissingPackage(
            'agreement needs the package krippendorff: pip install "oneforcing_jax[serve]"'
        ) from error
    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))


def page(found: Mapping[str, Any]) -> str:
    """Table 2 and what belongs to it, as Markdown."""
    left_out = [name for name, rater in found["raters"].items() if not rater["counts"]]
    lines = [
        f"| baseline | {found['ours']} wins | baseline wins | ties | decided | win rate | interval of 95% |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in found["baselines"].items():
        rate, span = "", ""
        if row["decided"]:
            rate, span = f"{row['rate']:.1%}", f"{row['low']:.1%} to {row['high']:.1%}"
        counts = " | ".join(str(row[key]) for key in ("wins", "losses", "ties", "decided"))
        lines.append(f"| {name} | {counts} | {rate} | {span} |")
    agreed = found["agreement"]
    said = [f"{name} {agreed[key]:.3f}" for key, name in
            (("alpha", "Krippendorff's alpha"), ("equal", "equal votes on a pair"))
            if agreed[key] is not None]  # fmt: skip
    kept = len(found["raters"]) - len(left_out)
    left = "" if found["left"] is None else f" Left side preferred in {found['left']:.1%} of them."
    return "\n".join([
        *lines, "",
        f"{found['votes']} votes of {kept} raters{'' if found['complete'] else ', not all votes yet'}."
        + left,
        f"Left out for attention checks: {', '.join(f'rater {name}' for name in left_out) or 'nobody'}.",
        f"Agreement: {', '.join(said) or 'no pair has two votes'}.",
        f"Draw {found['draw'][:12]}.",
    ])  # fmt: skip

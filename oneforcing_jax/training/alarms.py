"""Signs that a run goes wrong while all its numbers are finite. Each looks at one metric's history."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

# Values over which a metric is averaged before it is judged.
WINDOW = 10


def _means(values: Sequence[float]) -> np.ndarray:
    """Means of all runs of WINDOW values; none if there are fewer than two runs apart."""
    if len(values) < 2 * WINDOW:
        return np.empty(0)
    return np.convolve(values, np.full(WINDOW, 1 / WINDOW), "valid")


def gap_collapsed(gaps: Sequence[float]) -> str:
    """The discriminator told real from generated clips, and no longer does."""
    means = _means(gaps)
    if not len(means) or means.max() < 0.1 or means[-1] > 0.1 * means.max():
        return ""
    return (
        f"the gap between real and fake logits collapsed to {means[-1]:.3g} (it was {means.max():.3g}): "
        "the adversarial branch no longer teaches"
    )


def critic_lagging(losses: Sequence[float]) -> str:
    """The fake score denoises generated clips worse than it did: it does not follow the student."""
    means = _means(losses)
    if not len(means) or means[-1] <= 1.5 * means.min():
        return ""
    return (
        f"the critic lags: its denoising loss is {means[-1]:.3g} (it was {means.min():.3g}); raise its "
        "learning rate or generator_every"
    )


def motion_vanishing(motions: Sequence[float]) -> str:
    """Samples stand still, the usual end of a student that collapses."""
    if len(motions) < 2 or motions[-1] >= 0.25 * motions[0]:
        return ""
    return f"motion of the samples vanishes: {motions[-1]:.3g} (it was {motions[0]:.3g})"


def score_not_finite(shares: Sequence[float]) -> str:
    """The teacher or the critic gave values that are not finite, which distribution matching left out."""
    if not shares or not shares[-1]:
        return ""
    return (
        f"{shares[-1]:.3g} of the values of a score are not finite and were left out: the teacher's weights "
        "or its dtype do not fit"
    )


ALARMS: Mapping[str, Callable[[Sequence[float]], str]] = {
    "critic/logit_gap": gap_collapsed,
    "critic/denoise_loss": critic_lagging,
    "generator/dmd_replaced": score_not_finite,
    "samples/motion": motion_vanishing,
    "samples/motion_ema": motion_vanishing,
}


class Watch:
    """Looks at rows of metrics as they come and says each alarm once, when it begins."""

    def __init__(self, rows: Sequence[Mapping[str, float]] = ()) -> None:
        """`rows` are those of the run so far; alarms that they ring are not said again."""
        self._history: dict[str, list[float]] = {name: [] for name in ALARMS}
        self._ringing: dict[str, bool] = dict.fromkeys(ALARMS, False)
        for row in rows:
            self.look(row)

    def look(self, row: Mapping[str, float]) -> list[str]:
        """Alarms that begin with this row."""
        begun = []
        for name in ALARMS.keys() & row.keys():
            self._history[name].append(row[name])
            text = ALARMS[name](self._history[name])
            if text and not self._ringing[name]:
                begun.append(text)
            self._ringing[name] = bool(text)
        return begun

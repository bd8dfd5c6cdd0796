"""Alarms ring for what they name, once, and stay silent for noise."""

import numpy as np
import pytest

from oneforcing_jax.training.alarms import Watch


def ring(name: str, values, before: int = 0) -> list[str]:
    rows = [{name: float(value)} for value in values]
    watch = Watch(rows[:before])
    return [text for row in rows[before:] for text in watch.look(row)]


def noisy(levels, scale: float) -> np.ndarray:
    levels = np.asarray(levels, float)
    return levels + scale * np.random.default_rng(0).standard_normal(levels.shape)


@pytest.mark.parametrize(
    ("name", "bad", "good", "message"),
    [
        (
            "critic/logit_gap",
            noisy(np.concatenate([np.linspace(0, 2, 30), np.zeros(30)]), 0.02),
            noisy(np.concatenate([np.linspace(0, 2, 30), np.ones(30)]), 0.5),
            "gap between real and fake logits collapsed",
        ),
        (
            "critic/denoise_loss",
            noisy(np.concatenate([np.full(30, 0.1), np.full(30, 0.2)]), 0.01),
            noisy(np.concatenate([np.full(30, 0.2), np.full(30, 0.1)]), 0.01),
            "the critic lags",
        ),
        ("samples/motion", [0.1, 0.08, 0.05, 0.02], [0.1, 0.05, 0.03, 0.2], "samples vanishes"),
    ],
)
def test_alarms(name, bad, good, message):
    (text,) = ring(name, bad)
    assert message in text and "\n" not in text
    assert ring(name, good) == []
    # A run that continues does not repeat what it said before it was interrupted.
    assert ring(name, [*bad, bad[-1]], before=len(bad)) == []


def test_a_gap_that_never_was_does_not_collapse():
    assert ring("critic/logit_gap", noisy(np.zeros(60), 0.02)) == []
    assert ring("other", range(60)) == []

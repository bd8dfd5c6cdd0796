"""Many-step sampling of a bidirectional model: Euler and UniPC, with guidance.

Both are linear in what they remember: the input of a step, the corrected input of the step before it, and
predictions of the clean clip. A sampler is therefore a table of coefficients, made once in float64, and one
scan runs every table.

UniPC (Zhao et al. 2023; order 2, B(h) = e^h - 1) is Wan2.1's default. In the variable lambda = log((1 -
sigma) / sigma) the flow's ODE is linear but for the prediction of the clean clip, and is solved exactly
where that is constant over a step of length h: x' = sigma'/sigma x + alpha' (1 - e^-h) m. UniPC adds finite
differences of predictions, once without the prediction at the end of the step (predictor) and, when
the next evaluation has made that known, once with it (corrector, at no further evaluation).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from oneforcing_jax import flow
from oneforcing_jax.errors import InputError
from oneforcing_jax.models import condition as conditions
from oneforcing_jax.models.condition import Condition
from oneforcing_jax.models.model import Model


class Sampler(NamedTuple):
    """Coefficients of every step, float32.

    Attributes:
      sigma: [steps] noise levels of the steps' inputs.
      told: [steps] noise levels that the network is told.
      correct: [steps, 5], of (input, corrected input of the last step, and the predictions of the step
        before the last, of the last and of this step): their sum is the corrected input.
      predict: [steps, 3], of (corrected input, predictions of the last and of this step): their sum is
        the next step's input.
    """

    sigma: np.ndarray
    told: np.ndarray
    correct: np.ndarray
    predict: np.ndarray


def wan_grid(steps: int, shift: float) -> np.ndarray:
    """Noise levels of Wan2.1's samplers, [steps + 1]; they begin below 1, where UniPC can.

    Raises:
      InputError: no step, or a shift that is not positive.
    """
    if steps < 1 or shift <= 0:
        raise InputError(
            f"sampler: expected 1 step or more and a positive shift, found {steps} and {shift}"
        )
    u = np.linspace(1 - 1 / flow.TRAIN_STEPS, 0.0, steps + 1)
    return shift * u / (1 + (shift - 1) * u)


def euler(sigmas: Sequence[float] | np.ndarray) -> Sampler:
    """x' = x + (sigma' - sigma) v, with v = (x - m) / sigma; `sigmas` [steps + 1] fall to the last."""
    now, after = np.asarray(sigmas, np.float64)[:-1], np.asarray(sigmas, np.float64)[1:]
    ratio, zero = after / now, np.zeros_like(now)
    predict = np.stack([ratio, zero, 1 - ratio], 1)
    return _sampler(now, now, np.tile([1.0, 0, 0, 0, 0], (len(now), 1)), predict)


def unipc(sigmas: Sequence[float] | np.ndarray) -> Sampler:
    """UniPC of order 2; of order 1 in the first step and the last.

    Args:
      sigmas: [steps + 1] noise levels that fall from below 1 to 0.

    The network is told timesteps without their fractions, as in Wan2.1 and in diffusers.

    Raises:
      InputError: levels that begin at 1, where lambda has no value, do not fall, or do not end at 0.
    """
    s = np.asarray(sigmas, np.float64)
    if len(s) < 2 or not 0 < s[0] < 1 or s[-1] != 0 or (np.diff(s) >= 0).any():
        raise InputError(
            f"unipc: expected noise levels that fall from below 1 to 0, found {s.tolist()}"
        )
    steps, alpha = len(s) - 1, 1 - s
    with np.errstate(divide="ignore"):
        rise = np.log(alpha) - np.log(s)
    correct, predict = np.zeros((steps, 5)), np.zeros((steps, 3))
    correct[0, 0] = 1
    for i in range(steps):
        h = rise[i + 1] - rise[i]
        linear, exact = s[i + 1] / s[i], -alpha[i + 1] * np.expm1(-h)
        back = (rise[i - 1] - rise[i]) / h if 0 < i < steps - 1 else None
        # In the predictor, a difference to the last prediction, at `back` (in steps), counts half.
        slope = 0.5 / back if back is not None else 0.0
        predict[i] = linear, exact * slope, exact * (1 - slope)
        if i == steps - 1:
            break
        # The corrector of this step's end, which is the next step's input.
        before, end = (0.0, 0.5) if back is None else _corrector(h, back)
        past = before / back if back is not None else 0.0
        correct[i + 1] = 0, linear, exact * past, exact * (1 - past - end), exact * end
    return _sampler(
        s[:-1], np.floor(flow.TRAIN_STEPS * s[:-1]) / flow.TRAIN_STEPS, correct, predict
    )


def _corrector(h: float, back: float) -> np.ndarray:
    """Weights of the differences at `back` and at 1: those that integrate e^lambda times a polynomial of
    degree 2 exactly."""
    phi = np.expm1(-h)
    first = -phi / h - 1
    second = -first / h - 0.5
    return np.linalg.solve(np.array([[1, 1], [back, 1]]), np.array([first, 2 * second]) / phi)


def _sampler(*parts: np.ndarray) -> Sampler:
    return Sampler(*(np.asarray(part, np.float32) for part in parts))


@functools.partial(jax.jit, static_argnames=("model", "guidance", "states"))
def sample(
    model: Model,
    params: Any,
    noise: jax.Array,
    condition: Condition,
    null: Condition,
    sampler: Sampler,
    *,
    guidance: float,
    states: bool = False,
    given: jax.Array | None = None,
) -> jax.Array:
    """The clean clip [b, f, c, y, x] that the noise flows to; with `states` the way there, [b, steps + 1, f,
    c, y, x].

    Args:
      model, params: a bidirectional transformer.
      noise: [b, f, c, y, x].
      condition, null: of the clips, and what says nothing.
      sampler: from `euler` or `unipc`.
      guidance: s in cond + s (cond - uncond), which is Wan's guidance scale less 1.
      given: [b, f0, c, y, x] first latents, which stay; the network, told a noise level for every frame, is
        told 0 of theirs. The noise in their place is not read.
    """
    unguided = conditions.everywhere(null, condition)
    both = jax.tree.map(lambda *x: jnp.concatenate(x), condition, unguided)

    def weigh(weights: Any, *arrays: jax.Array) -> Any:
        return sum(w * x for w, x in zip(weights, arrays, strict=True))

    def put(x: jax.Array) -> jax.Array:
        return x if given is None else jnp.concatenate([given, x[:, given.shape[1] :]], 1)

    def levels(told: Any) -> jax.Array:
        count, frames = 2 * noise.shape[0], noise.shape[1]
        if given is None:
            return jnp.full(count, told)
        one = jnp.where(jnp.arange(frames) < given.shape[1], 0.0, told)
        return jnp.broadcast_to(one, (count, frames))

    def step(carry: Any, row: Sampler) -> tuple[Any, Any]:
        x, last, earlier, before = carry
        x, told = put(x), levels(row.told)
        out: Any = model.apply(params, jnp.concatenate([x, x]), told, both)
        conditional, unconditional = jnp.split(out.flow, 2)
        v = flow.guide(conditional, unconditional, guidance)
        clean = flow.x0_from_flow(x, v, row.sigma)
        corrected = weigh(row.correct, x, last, earlier, before, clean)
        after = weigh(row.predict, corrected, before, clean)
        return (after, corrected, before, clean), put(corrected) if states else None

    zero, rows = jnp.zeros_like(noise), jax.tree.map(jnp.asarray, sampler)
    (end, *_), way = jax.lax.scan(step, (noise, noise, zero, zero), rows)
    end = put(end)
    return jnp.moveaxis(jnp.concatenate([way, end[None]]), 0, 1) if states else end

"""Answers of attention with their sums of weights, by which answers over several sets of keys become one."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

# A log of a sum of no weights, which is finite so that differences are numbers.
NOTHING = -1e30


class Answer(NamedTuple):
    """Attention over some of the keys.

    Attributes:
      out: [..., h, k], float32 where it was joined.
      total: log of the sum of the exponentials of all logits, [..., h] float32; `NOTHING` where no key is
        seen, and then `out` may be anything.
    """

    out: jax.Array
    total: jax.Array


def joined(answers: Sequence[Answer]) -> Answer:
    """Attention of the same queries over all keys, from answers over some each."""
    if len(answers) == 1:
        return answers[0]
    total = functools.reduce(jnp.logaddexp, (one.total for one in answers))
    parts = (jnp.exp(one.total - total)[..., None] * one.out for one in answers)
    return Answer(functools.reduce(operator.add, parts), total)


def after(answer: Answer, queries: int) -> Answer:
    """An answer [b, t, ...] with so many queries before its own, which see nothing."""
    before = ((0, 0), (queries, 0), (0, 0))
    return Answer(
        jnp.pad(answer.out, (*before, (0, 0))),
        jnp.pad(answer.total, before, constant_values=NOTHING),
    )

"""What a video is conditioned on: a tree that a model declares and that nobody else looks into.

It has what belongs to a clip, such as its prompt, and what belongs to each frame, such as actions, a camera
or the time of day. Blocks take their frames' part with them, as they take their noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

CLIP, FRAME = "clip", "frame"
# What a batch calls the embeddings of the prompt, and of the negative one.
TEXT, NEGATIVE = "text", "negative"


def cut(tree: Any, start: int, stop: int | None = None) -> Any:
    """Frames [start, stop) of a tree of arrays [b, f, ...]."""
    return jax.tree.map(lambda x: x[:, start:stop], tree)


def joined(*trees: Any) -> Any:
    """Trees of arrays [b, f, ...], one after the other."""
    return jax.tree.map(lambda *x: jnp.concatenate(x, 1), *trees)


class Field(NamedTuple):
    """A condition that a model takes.

    Attributes:
      shape: of a clip's, or of one frame's.
      of: `CLIP` or `FRAME`.
      null: what a batch calls the array of this shape that says nothing; "": zeros say nothing.
    """

    shape: tuple[int, ...]
    of: str = CLIP
    null: str = ""


class Condition(NamedTuple):
    """The conditions of a batch of clips.

    Attributes:
      clip: arrays [b, ...] by name, or what the model's `prepare` made of them.
      frame: arrays [b, f, ...] by name.
    """

    clip: Any
    frame: Mapping[str, jax.Array] = {}

    def cut(self, start: int, stop: int | None = None) -> Condition:
        """With frames [start, stop) alone; None: all from `start` on."""
        return self._replace(frame=cut(self.frame, start, stop))

    def blocks(self, start: int, count: int, size: int, before: int = 0) -> Mapping[str, jax.Array]:
        """Frames' parts of `count` blocks of `size` frames, stacked on a leading axis for a scan. Each has
        the `before` frames before it too; the first of all is frame `start`."""

        def one(x: jax.Array) -> jax.Array:
            rows = [x[:, start + i * size :][:, : before + size] for i in range(count)]
            return jnp.stack(rows)

        return jax.tree.map(one, self.frame)

    def then(self, later: Condition) -> Condition:
        """With the frames of another condition after its own."""
        return self._replace(frame=joined(self.frame, later.frame))


def prompted(text: Any) -> Condition:
    """The condition of prompts alone, by their embeddings [b, s, d], zero beyond each prompt's end."""
    return Condition({TEXT: text})


def of(takes: Mapping[str, Field], batch: Mapping[str, Any]) -> Condition:
    """The conditions of the samples of a batch."""
    parts = {
        kind: {n: batch[n] for n, f in takes.items() if f.of == kind} for kind in (CLIP, FRAME)
    }
    return Condition(parts[CLIP], parts[FRAME])


def null(takes: Mapping[str, Field], batch: Mapping[str, Any]) -> Condition:
    """What says nothing, of one clip and one frame: arrays without their axes b and f."""
    said = {n: batch[f.null] if f.null else jnp.zeros(f.shape) for n, f in takes.items()}
    return of(takes, said)


def where(drop: jax.Array, null: Condition, given: Condition) -> Condition:
    """The given conditions, but the null in the clips in which `drop` [b] is true."""

    def one(nothing: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.where(drop.reshape(-1, *[1] * (x.ndim - 1)), nothing, x)

    return jax.tree.map(one, null, given)


def everywhere(null: Condition, like: Condition) -> Condition:
    """The null for all clips and frames of a condition."""
    return jax.tree.map(lambda nothing, x: jnp.broadcast_to(nothing, x.shape), null, like)

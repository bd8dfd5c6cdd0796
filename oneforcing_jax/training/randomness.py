"""Random keys that belong to a purpose: a hash of the seed and of what they are for.

So each stage, network and purpose draws numbers of its own, and no two seeds draw the same.
"""

from __future__ import annotations

import hashlib

import jax


def number(seed: int, *purpose: str) -> int:
    """A number from 0 to 2^32 - 1 for a purpose such as ("one_forcing", "critic", "data")."""
    return _words(seed, purpose)[0]


def key(seed: int, *purpose: str) -> jax.Array:
    """A random key for a purpose; fold an iteration or the number of a sample into it."""
    first, second = _words(seed, purpose)
    return jax.random.fold_in(jax.random.key(first), second)


def _words(seed: int, purpose: tuple[str, ...]) -> tuple[int, int]:
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")

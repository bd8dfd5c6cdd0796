"""Softmax attention on one device: a record `Kernel` for each kind of device, chosen by the mesh in use.

One file makes one kernel: `xla`, `cudnn`, `splash`. Attention, the cache, rematerialisation and plans ask the
record that `chosen` gives, and know no device. `groups` is how a kernel is told which frames see which,
`answers` is how several answers become one, and `levels` is how cuDNN takes many blocks in few calls.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax

from oneforcing_jax import sharding
from oneforcing_jax.models.kernels.answers import Answer

# The modules that make the kernels of platforms; every other platform has XLA's.
MODULES = {
    "tpu": "oneforcing_jax.models.kernels.splash",
    "gpu": "oneforcing_jax.models.kernels.cudnn",
    "cuda": "oneforcing_jax.models.kernels.cudnn",
}
XLA = "oneforcing_jax.models.kernels.xla"
# The name by which rematerialisation keeps a kernel's answers, and what their gradient needs besides.
ANSWERS = "attention_answers"


def named_answers(primitive: Any, *_: Any, **params: Any) -> bool:
    """Policy of `jax.checkpoint` that keeps what is named `ANSWERS`."""
    return bool(primitive.name == "name" and params["name"] == ANSWERS)


def _unasked(*_: Any) -> Any:
    """What a kernel does not have, so that nobody asks for it."""
    raise NotImplementedError("attention: a kernel was asked for what it says it does not have")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """softmax(q k^T / sqrt(k)) v on one kind of device, in the dtype of q; the softmax is float32.

    Only the first two must be there. Arrays are those of one device.

    Attributes:
      attend: attend(q, k, v, length=None) -> [b, t, h, k], of q [b, t, h, k] and k, v [b, s, h, k]: attention
        over the first `length` keys, a traced number; None: all.
      structured: structured(q, k, v, groups) -> [b, f, n, h, k], of q [b, f, n, h, k] and k, v
        [b, F, m, h, k]: each `groups.Group` of frames over what it sees. Groups cover the frames of q in
        order. A frame of q may have fewer tokens than one of k: those that this device asks for.
      sums: sums(q) says whether `summed` takes such queries. Then keys that several blocks see are read once
        for the queries of all, and each block's own in another call.
      summed: as `attend`, but gives an `Answer`, with its sums of weights, and takes no gradient.
      rows: rows(s) -> the number of rows to which the s keys of a head are filled up, where the kernel reads
        them as [b, h, rows, k]; None: it reads them as they are made. A cache that lies so is read where it
        is; any other is turned and copied before every call.
      prefixes: prefixes(q, k, v, ends) -> [b, t, h, k], of k, v in such rows: query number i sees the first
        ends[i] keys.
      skips: whether keys beyond `length` take no time; if not, it pays to give `attend` a static part of all.
      keeps: policy of `jax.checkpoint` that keeps the answers where keys are at least as many as queries.
        They take the longest to compute again, and the least memory to keep.
    """

    attend: Callable[..., jax.Array]
    structured: Callable[..., jax.Array]
    sums: Callable[[jax.Array], bool] = lambda q: False
    summed: Callable[..., Answer] = _unasked
    rows: Callable[[int], int] | None = None
    prefixes: Callable[..., jax.Array] = _unasked
    skips: bool = False
    keeps: Callable[..., bool] = named_answers


def chosen() -> Kernel:
    """The kernel of the devices that programs are made for (`sharding.target`)."""
    device = sharding.target()
    return _made(MODULES.get(device.platform, XLA), device.device_kind)


@functools.cache
def _made(module: str, device_kind: str) -> Kernel:
    made: Kernel = importlib.import_module(module).kernel(device_kind)
    return made

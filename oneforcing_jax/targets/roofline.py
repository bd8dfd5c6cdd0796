"""How long a program takes at least, and what bounds it.

A kernel takes the time of its operations at the chip's rate of a large product, or of its bytes at the
bandwidth of the memory, whichever is longer. The launch of the next one is added. Collectives send at the
rate of all links together, or of the network where their devices lie in several slices or hosts. Synchronous
ones add to the time of the kernels. Asynchronous ones (with a start and an end) and copies of that kind run
beside the kernels, and count only where they alone, or all traffic to memory, take longer than all kernels.

Left out: products that do not fill the chip's units (small or odd shapes, tiles), elementwise arithmetic,
latency of collectives and rings that are not laid over all links, traffic that a second-level cache saves,
the host, and other programs on the device. Measured times are longer; settings can be compared.
"""

from __future__ import annotations

import dataclasses

from oneforcing_jax.targets.chips import Chip
from oneforcing_jax.targets.kernels import Kernel, Work

# Bytes a second between a device and its host's memory.
HOST = 25e9
BOUNDS = ("operations", "memory", "links", "launches")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds of one run on each device.

    Attributes:
      seconds: at least.
      bound: the largest part of them, one of `BOUNDS`.
      parts: seconds by `BOUNDS`: of the kernels that each of them bounds, and of collectives.
    """

    seconds: float
    bound: str
    parts: dict[str, float]


def predict(work: Work, chip: Chip, island: int) -> Prediction:
    """Seconds of a program.

    Args:
      work: its kernels.
      chip: of each device.
      island: devices that the chip's links join: of a slice, or a host's GPUs.
    """
    parts = dict.fromkeys(BOUNDS, 0.0)
    beside = dict.fromkeys(("memory", "links"), 0.0)
    for k in work.kernels:
        seconds = _seconds(k, chip, island)
        bound = max(seconds, key=lambda name: seconds[name])
        if k.overlaps:
            beside[bound if bound in beside else "memory"] += k.times * seconds[bound]
        else:
            parts[bound] += k.times * seconds[bound]
            parts["launches"] += k.times * chip.launch
    total = sum(parts.values())
    # All traffic shares the memory, whenever it happens.
    traffic = max(work.hbm_bytes / chip.bandwidth, beside["memory"])
    limits = {"memory": traffic, "links": beside["links"]}
    longest = max(limits, key=lambda name: limits[name])
    if limits[longest] > total:
        return Prediction(limits[longest], longest, parts | {longest: limits[longest]})
    return Prediction(total, max(parts, key=lambda name: parts[name]), parts)


def _seconds(k: Kernel, chip: Chip, island: int) -> dict[str, float]:
    link = chip.link
    if k.sent and len({device // island for device in k.sent.group}) > 1:
        link = chip.network
    return {
        "operations": k.flops * k.slowness / chip.rate,
        "memory": max((k.read + k.written) / chip.bandwidth, k.host / HOST),
        "links": k.sent.bytes / link if k.sent else 0.0,
    }

"""How long a program takes, and what bounds it.

A kernel takes the time of its operations or that of its bytes, whichever is longer, and the launch of the
next one is added. What was measured of the device says both (`targets/speeds.py`): products by their size,
attention by its queries and keys, bytes at the bandwidth that a copy reached, and no kernel is quicker than
the smallest. Of a device that nobody measured they are the data sheet's, and the sum is the least that a
program takes. Collectives send at the rate of all links together, or of the network where their devices lie
in several slices or hosts. Synchronous ones add to the time of the kernels. Asynchronous ones (with a start
and an end) and copies of that kind run beside the kernels, and count only where they alone, or all traffic to
memory, take longer than all kernels. So does a host that has to give the device each kernel.

Left out: elementwise arithmetic, latency of collectives and rings that are not laid over all links, traffic
that a second-level cache saves, how a program begins, and other programs on the device.
"""

from __future__ import annotations

import dataclasses

from oneforcing_jax.targets import speeds
from oneforcing_jax.targets.chips import Chip
from oneforcing_jax.targets.kernels import Kernel, Kernels
from oneforcing_jax.targets.speeds import Speed

# Bytes a second between a device and its host's memory.
HOST = 25e9
BOUNDS = ("operations", "attention", "memory", "links", "launches", "host")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Seconds of one run on each device.

    Attributes:
      seconds: of a device that was not measured, at least.
      bound: the largest part of them, one of `BOUNDS`.
      parts: seconds by `BOUNDS`: of the kernels that each of them bounds, and of collectives. "operations"
        are those of products, and of attention too where it was not measured by itself.
    """

    seconds: float
    bound: str
    parts: dict[str, float]


def predict(work: Kernels, chip: Chip, island: int) -> Prediction:
    """Seconds of a program.

    Args:
      work: its kernels.
      chip: of each device.
      island: devices that the chip's links join: of a slice, or a host's GPUs.
    """
    speed = speeds.of(chip)
    parts, queued = dict.fromkeys(BOUNDS, 0.0), 0.0
    beside = dict.fromkeys(("memory", "links"), 0.0)
    for k in work.kernels:
        seconds = _seconds(k, chip, speed, island)
        bound = max(seconds, key=lambda name: seconds[name])
        if k.overlaps:
            beside[bound if bound in beside else "memory"] += k.times * seconds[bound]
        else:
            parts[bound] += k.times * seconds[bound]
            least = max(speed.small - seconds[bound], chip.launch)
            parts["launches"] += k.times * least
            queued += k.times * speed.host
    total = sum(parts.values())
    # All traffic shares the memory, whenever it happens.
    traffic = max(work.hbm_bytes / speed.bandwidth, beside["memory"])
    limits = {"memory": traffic, "links": beside["links"], "host": queued}
    longest = max(limits, key=lambda name: limits[name])
    if limits[longest] > total:
        return Prediction(limits[longest], longest, parts | {longest: limits[longest]})
    return Prediction(total, max(parts, key=lambda name: parts[name]), parts)


def _seconds(k: Kernel, chip: Chip, speed: Speed, island: int) -> dict[str, float]:
    link = chip.link
    if k.sent and len({device // island for device in k.sent.group}) > 1:
        link = chip.network
    if k.attention and speed.attention:
        return {"attention": speed.attends(k.attention)}
    return {
        "operations": speed.multiplies(k.flops) * k.slowness,
        "memory": max((k.read + k.written) / speed.bandwidth, k.host / HOST),
        "links": k.sent.bytes / link if k.sent else 0.0,
    }

"""How fast devices were seen to be, and where each number comes from.

The H200's come from `tools/bench.py gpu --parts=ceilings`, so from single operations that run for themselves;
no number was chosen for a whole program to come out right. Of two TPUs only whole steps of another framework
are published: all its operations, by all its seconds. Any other device has its data sheet, and a prediction
for it is not calibrated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from oneforcing_jax.targets.arithmetic import Attention
from oneforcing_jax.targets.chips import CHIPS, Chip

# (size, seconds), the smallest first.
Points = Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Speed:
    """What a prediction assumes of a device.

    Attributes:
      source: who measured it, and what; "": nobody, it is the data sheet.
      products: products in bf16 by their operations.
      bandwidth: bytes a second of the memory, of a kernel that reads and writes as much as it can.
      small: seconds of the smallest kernel, until the next one begins; 0: not measured.
      host: seconds that the host takes to give the device a kernel; 0: it gives a whole program at once.
      attention: forward passes of attention in bf16 with heads of 128: rows (samples x heads x queries)
        and the seconds of these by number of keys; none: counted as products are.
      lengths: how many times longer they take when told at run time how many keys count.
      backward: how many times the forward pass' seconds a backward pass takes.
    """

    source: str
    products: Points
    bandwidth: float
    small: float = 0.0
    host: float = 0.0
    attention: Sequence[tuple[float, Points]] = ()
    lengths: float = 1.0
    backward: float = 1.0

    def multiplies(self, operations: float) -> float:
        """Seconds of a product."""
        return _between(((0.0, 0.0), *self.products), operations)

    def attends(self, asked: Attention) -> float:
        """Seconds of a call of attention. Those between measured ones lie on straight lines: by keys first,
        where all lines begin at the time of no keys, then by rows. Fewer rows than were measured fill one
        wave of the processors instead of two, which halves the time at most; more take it in proportion."""
        (least, few), rest = self.attention[0], self.attention[1:]
        (s, first), (more, second), *_ = few
        none = first - s * (second - first) / (more - s)
        at = _between(((0.0, none), *few), asked.keys)
        points = [(least / 2, at / 2), (least, at)]
        points += [(r, _between(((0.0, none), *row), asked.keys)) for r, row in rest]
        seconds = _between(points, max(asked.rows, least / 2))
        if asked.backward:
            return seconds * self.backward
        return seconds * (self.lengths if asked.lengths else 1.0)


def _between(points: Points, at: float) -> float:
    """The seconds of `at` on straight lines between points; beyond the last they grow in proportion."""
    sizes, seconds = zip(*points, strict=True)
    if at >= sizes[-1]:
        return float(seconds[-1] * at / sizes[-1])
    return float(np.interp(at, sizes, seconds))


# JAX 0.11.2, cuDNN 9.19, a limit of 700 W, which products one after the other reach.
_H200 = Speed(
    source="single operations on one H200, 2026-11-28 (docs/gpu.md)",
    products=(
        (14.72e9, 21.44e-6),  # 3120 x 1536 x 1536
        (85.88e9, 116.7e-6),  # 3120 x 1536 x 8960
        (901.7e9, 1303e-6),  # 32760 x 1536 x 8960
        (1099.5e9, 1592e-6),  # 8192 cubed
        (4637e9, 6673e-6),  # 32760 x 5120 x 13824
    ),
    bandwidth=3.349e12,
    small=3.88e-6,
    host=10.7e-6,
    attention=(
        (12 * 1560, ((512, 26.2e-6), (1560, 52.1e-6), (17160, 457e-6), (32760, 856e-6))),
        (12 * 3120, ((17160, 702e-6), (32760, 1330e-6))),
        (12 * 32760, ((32760, 11481e-6),)),
        (40 * 32760, ((32760, 38524e-6),)),
    ),
    # 1536 x 16896 and x 32256 so told, 0.491 and 0.906 ms, over what the lines above give these: 0.438, 0.83.
    lengths=1.1,
    # 32760 x 32760, 12 heads: forward and backward in 40.998 ms.
    backward=2.571,
)

SPEEDS = {
    "h200": _H200,
    # Wan 2.1 14B, one clip of 75,600 tokens on four chips: 36.0 s a step, 135.9e12 model operations a second
    # of each; 1.45 times as many with every layer's forward pass and attention's scores computed again.
    "v5p": Speed(
        "maxdiffusion's published step of Wan 2.1 14B on v5p-8, whole: 36.0 s",
        ((197e12, 1.0),),
        CHIPS["v5p"].bandwidth,
    ),
    # Wan 2.2 14B, 40 guided steps over 75,600 tokens on eight chips: 6.52e15 operations a forward pass.
    "v6e": Speed(
        "maxdiffusion's published video of Wan 2.2 14B on 8 v6e, whole: 251.45 s",
        ((259e12, 1.0),),
        CHIPS["v6e"].bandwidth,
    ),
}  # fmt: skip


def of(chip: Chip) -> Speed:
    """What was measured of a chip, or what its maker states."""
    found = next((speed for name, speed in SPEEDS.items() if CHIPS[name] == chip), None)
    return found or Speed("", ((chip.rate, 1.0),), chip.bandwidth)

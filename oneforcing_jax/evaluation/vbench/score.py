"""VBench's score: raw values of its 16 dimensions, brought to a common scale, and their weighted means."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple


class Dimension(NamedTuple):
    """One of VBench's.

    Attributes:
      low, high: raw values that become 0 and 1. What lies outside is not clipped.
      weight: in the mean of its group.
      group: "quality" or "semantic".
    """

    low: float
    high: float
    weight: float
    group: str


DIMENSIONS = {
    "subject_consistency": Dimension(0.1462, 1.0, 1.0, "quality"),
    "background_consistency": Dimension(0.2615, 1.0, 1.0, "quality"),
    "temporal_flickering": Dimension(0.6293, 1.0, 1.0, "quality"),
    "motion_smoothness": Dimension(0.706, 0.9975, 1.0, "quality"),
    "dynamic_degree": Dimension(0.0, 1.0, 0.5, "quality"),
    "aesthetic_quality": Dimension(0.0, 1.0, 1.0, "quality"),
    "imaging_quality": Dimension(0.0, 1.0, 1.0, "quality"),
    "object_class": Dimension(0.0, 1.0, 1.0, "semantic"),
    "multiple_objects": Dimension(0.0, 1.0, 1.0, "semantic"),
    "human_action": Dimension(0.0, 1.0, 1.0, "semantic"),
    "color": Dimension(0.0, 1.0, 1.0, "semantic"),
    "spatial_relationship": Dimension(0.0, 1.0, 1.0, "semantic"),
    "scene": Dimension(0.0, 0.8222, 1.0, "semantic"),
    "appearance_style": Dimension(0.0009, 0.2855, 1.0, "semantic"),
    "temporal_style": Dimension(0.0, 0.364, 1.0, "semantic"),
    "overall_consistency": Dimension(0.0, 0.364, 1.0, "semantic"),
}
QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4, 1


@dataclasses.dataclass(frozen=True)
class Score:
    """A model's score, as fractions of 1.

    Attributes:
      rows: raw value of each dimension that counts.
      missing: dimensions without a result.
      quality, semantic, total: None where a dimension is missing, unless it counts as zero.
    """

    rows: Mapping[str, float]
    missing: tuple[str, ...]
    quality: float | None
    semantic: float | None
    total: float | None

    def as_json(self) -> dict[str, Any]:
        """With each row's raw and normalised value."""
        rows = {
            name: {"raw": raw, "score": normalised(name, raw)} for name, raw in self.rows.items()
        }
        return dataclasses.asdict(self) | {"rows": rows}


def normalised(name: str, raw: float) -> float:
    """A raw value on the common scale, not clipped."""
    low, high = DIMENSIONS[name].low, DIMENSIONS[name].high
    return (raw - low) / (high - low)


def total(quality: float, semantic: float) -> float:
    """The total of both groups."""
    weights = QUALITY_WEIGHT + SEMANTIC_WEIGHT
    return (QUALITY_WEIGHT * quality + SEMANTIC_WEIGHT * semantic) / weights


def score(raw: Mapping[str, float], leaderboard_zero: bool = False) -> Score:
    """The score of raw values by dimension.

    Args:
      raw: of any of the dimensions.
      leaderboard_zero: a missing one counts as a raw value of 0, as on VBench's leaderboard.
    """
    missing = tuple(name for name in DIMENSIONS if name not in raw)
    rows = {name: raw.get(name, 0.0) for name in DIMENSIONS if name in raw or leaderboard_zero}
    if len(rows) < len(DIMENSIONS):
        return Score(rows, missing, None, None, None)
    quality, semantic = _mean(rows, "quality"), _mean(rows, "semantic")
    return Score(rows, missing, quality, semantic, total(quality, semantic))


def _mean(rows: Mapping[str, float], group: str) -> float:
    """The weighted mean of a group."""
    its = {name: row for name, row in DIMENSIONS.items() if row.group == group}
    weighted = sum(row.weight * normalised(name, rows[name]) for name, row in its.items())
    return weighted / sum(row.weight for row in its.values())

"""What the rows and columns of a report mean, a line each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Scores of the toy (`oneforcing_jax.toy.scores`), and those that `tools/study.py` reads besides.
SCORES = {
    "colour": "share of videos in the colour that the prompt says, or in one that is known (1 is best)",
    "shape": "share of videos with the shape that the prompt says (1 is best)",
    "direction": "share of videos that move where the prompt says (1 is best)",
    "joint": "share of videos that are right in colour, shape and direction at once (1 is best)",
    "clear": "share of videos whose colour and shape are beyond doubt (1 is best)",
    "variety": "how evenly what the prompt leaves open occurs: 0 is always the same, 1 as in the world",
    "sharpness": "strength of edges as a part of that of real videos (1 is as real)",
    "motion": "how far things move, as a part of real videos' motion (1 is as real)",
    "steady": "likeness of a shape to itself a frame later, as a part of real videos' (1 is as real)",
    "frechet": "distance from real videos by features of a small judge (0 is best; no FVD)",
    "scene": "the same by place, size and colour as they are read from pixels (0 is best)",
    "spectrum": "difference from real videos in power by spatial frequency, in decibels (0 is best)",
    "diversity": "how far videos of one prompt lie apart, as a part of real videos' (1 is as real)",
    "drift_clear": "share of clear videos at the end of long ones less that at the beginning (0: as good)",
    "drift_sharpness": "sharpness at the end of long videos as a part of that at the beginning (1: as good)",
    "drift_motion": "the same of motion",
    "drift_steady": "the same of steadiness",
    "logit_gap": "critic's logits of real videos less those of made ones, late in training",
}
_MODELS = {
    "real": "videos that models learn from",
    "real through the codec": "the same, encoded and decoded: what a perfect model would show",
}
_KINDS = {"ema ": "a moving average of its weights", "random ": "before any training"}


def models(names: Sequence[str], config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Models of a run with what they are, as far as it is known.

    Args:
      names: of the models.
      config: of the run, by dotted names; a stage of the kind "report" names the sources of its rows.
    """
    known = dict(_MODELS)
    for field, kind in config.items():
        stage = field.removesuffix("kind")
        if stage != field and str(kind).endswith("report"):
            known |= {row: _source(source) for row, source in config.get(f"{stage}students", ())}
            if teacher := config.get(f"{stage}teacher"):
                known["teacher"] = (
                    f"{_source(teacher)}; sees whole clips, {config.get('evaluation.steps')} steps, "
                    f"guidance {config.get('evaluation.guidance')}"
                )
    yield from ((name, known[name]) for name in names if name in known)


def _source(text: str) -> str:
    """What "STAGE:NET" names, with a kind before it or without."""
    kind = next((kind for kind in _KINDS if text.startswith(kind)), "")
    stage, _, net = text.removeprefix(kind).partition(":")
    return ", ".join(filter(None, (f"{net} of stage {stage}", _KINDS.get(kind, ""))))

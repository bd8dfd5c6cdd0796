"""The draw of a study: its prompts, pairs and sides, fixed and hashed before the first vote.

A study is a folder: prompts.txt, draw.json, the clips under names that say nothing, and votes.db.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from oneforcing_jax.data.playable import encoded, playable, steady
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.evaluation.raters.prompts import Prompt, stratified
from oneforcing_jax.generation.jobs import file_name
from oneforcing_jax.setup.ranges import Amount, Natural, Seed
from oneforcing_jax.system import textfiles
from oneforcing_jax.system.files import read_record, write_whole

OTHER = "expected nothing or the same draw, found another; choose another --out"
DRAW, PROMPTS, CLIPS = "draw.json", "prompts.txt", "clips"
SIDES = ("left", "right")
# Asked in the paper.
QUESTION = (
    "Which video is better overall, considering visual quality, motion realism, temporal consistency, and "
    "prompt alignment?"
)
# The share of the attention checks that a rater may get wrong.
WRONG = 0.2


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is drawn.

    Attributes:
      count: prompts.
      raters: votes of each pair.
      checks: attention checks, pairs of a clip and the same clip spoilt.
      seed: of prompts, sides and order.
    """

    count: Amount
    raters: Amount
    checks: Natural
    seed: Seed


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two clips of one prompt.

    Attributes:
      prompt: its number in the draw.
      baseline: whose clip is set against ours; "" for an attention check.
      ours: the side of our clip, or of the clip that is not spoilt.
      left, right: files of the clips.
    """

    prompt: int
    baseline: str
    ours: str
    left: str
    right: str


@dataclasses.dataclass(frozen=True)
class Draw:
    """A study before its votes; draw.json holds it with its hash.

    Attributes:
      ours: name of the model that is compared.
      baselines: names of those it is compared with.
      wrong: attention checks that a rater may get wrong before their votes stop counting.
      pairs: in an order that says nothing.
      clips: SHA-256 of each file of a clip.
    """

    question: str
    settings: Settings
    ours: str
    baselines: tuple[str, ...]
    wrong: int
    prompts: tuple[Prompt, ...]
    pairs: tuple[Pair, ...]
    clips: Mapping[str, str]

    @property
    def hash(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(json.dumps(self._record(), sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def checks(self) -> frozenset[int]:
        """Numbers of the pairs that are attention checks."""
        return frozenset(n for n, pair in enumerate(self.pairs) if not pair.baseline)

    @property
    def needed(self) -> int:
        """Votes of a finished study; those on attention checks are not among them."""
        return (len(self.pairs) - len(self.checks)) * self.settings.raters

    def _record(self) -> dict[str, Any]:
        prompts = [prompt._asdict() for prompt in self.prompts]
        return dataclasses.asdict(self) | {"prompts": prompts}

    def write(self, folder: Path) -> None:
        """Writes it into the folder of the study.

        Raises:
          InputError: another draw is there, or the folder cannot be written.
        """
        file = folder / DRAW
        if file.exists() and read(folder).hash != self.hash:
            raise InputError(f"{file}: {OTHER}")
        content = json.dumps(self._record() | {"hash": self.hash}, indent=1)
        write_whole(file, f"{content}\n".encode())


def read(folder: Path) -> Draw:
    """The draw of a study.

    Raises:
      MissingInput, InputError: no draw, or one that was changed after it was hashed.
    """
    file = folder / DRAW
    if not file.is_file():
        raise MissingInput(f"expected the folder of a study, found no {file}; begin with draw")
    record = read_record(file)
    said = record.pop("hash", None)
    try:
        made = Draw(
            **record
            | {
                "settings": Settings(**record["settings"]),
                "baselines": tuple(record["baselines"]),
                "prompts": tuple(Prompt(**row) for row in record["prompts"]),
                "pairs": tuple(Pair(**row) for row in record["pairs"]),
            }
        )
    except (LookupError, TypeError):
        raise InputError(f"{file}: expected a draw, found other fields; restore it") from None
    if made.hash != said:
        raise InputError(
            f"{file}: expected the draw that was hashed ({str(said)[:12]}), found one that was changed "
            "since; restore it from a copy"
        )
    return made


def check_clips(folder: Path, drawn: Draw) -> None:
    """Compares the clips with the draw.

    Raises:
      MissingInput, InputError: one is missing or is not as it was.
    """
    for name, said in tqdm(drawn.clips.items(), desc="clips", leave=False):
        file = folder / CLIPS / name
        if not file.is_file():
            raise MissingInput(f"{file}: expected a clip of the draw, found nothing; draw again")
        if hashlib.sha256(file.read_bytes()).hexdigest() != said:
            raise InputError(f"{file}: expected the clip as drawn, found another; draw again")


def find(folder: Path, prompt: Prompt) -> Path | None:
    """A model's clip of a prompt: its first sample, named as oneforcing_jax.generate names it."""
    stem = file_name(prompt.words)
    return textfiles.find(folder, f"{stem}-0.mp4") or textfiles.find(folder, f"{stem}.mp4")


def make(
    prompts: Sequence[Prompt],
    ours: tuple[str, Path],
    baselines: Mapping[str, Path],
    settings: Settings,
    out: Path,
) -> Draw:
    """Draws a study and gathers its clips. The same call goes on after an interruption.

    Args:
      prompts: to draw from.
      ours: name of our model and folder of its clips.
      baselines: those of the others.
      settings: what to draw.
      out: folder of the study.

    Raises:
      MissingInput, InputError: too few prompts, clips that are missing or damaged, another draw in `out`.
    """
    rng = np.random.default_rng(settings.seed)
    chosen = stratified(prompts, settings.count, rng)
    folders = {ours[0]: ours[1], **baselines}
    out.mkdir(parents=True, exist_ok=True)
    if (out / DRAW).exists() and read(out).prompts != tuple(chosen):
        raise InputError(f"{out / DRAW}: {OTHER}")
    write_whole(out / PROMPTS, "".join(f"{prompt.words}\n" for prompt in chosen).encode())
    files = _files(chosen, folders, out)
    (out / CLIPS).mkdir(exist_ok=True)
    clips: dict[tuple[int, str], str] = {}
    for (n, name), file in tqdm(files.items(), desc="clips", unit="clip"):
        clips[n, name] = _gather(out / CLIPS, file, "")
    pairs = []
    for n, _ in enumerate(chosen):
        pairs += [_pair(n, name, clips[n, ours[0]], clips[n, name], rng) for name in baselines]
    # Checks take the clips of all models in turn.
    for i, n in enumerate(rng.permutation(len(chosen))[: settings.checks]):
        whole = files[int(n), list(folders)[i % len(folders)]]
        made = [_gather(out / CLIPS, whole, kind) for kind in ("", "spoilt")]
        pairs.append(_pair(int(n), "", made[0], made[1], rng))
    order = rng.permutation(len(pairs))
    used = sorted({name for pair in pairs for name in (pair.left, pair.right)})
    drawn = Draw(
        QUESTION, settings, ours[0], tuple(baselines), int(WRONG * settings.checks), tuple(chosen),
        tuple(pairs[i] for i in order),
        {name: hashlib.sha256((out / CLIPS / name).read_bytes()).hexdigest() for name in used},
    )  # fmt: skip
    drawn.write(out)
    return drawn


def _files(
    prompts: Sequence[Prompt], folders: Mapping[str, Path], out: Path
) -> dict[tuple[int, str], Path]:
    """The clip of each prompt's number and model."""
    found = {(n, name): find(folder, prompt) for n, prompt in enumerate(prompts)
             for name, folder in folders.items()}  # fmt: skip
    if missing := [key for key, file in found.items() if file is None]:
        n, name = missing[0]
        raise MissingInput(
            f"{folders[name]}: expected {file_name(prompts[n].words)}-0.mp4 and in all {len(found)} "
            f"clips, {len(missing)} are missing; make them with oneforcing_jax.generate "
            f"--prompts={out / PROMPTS}"
        )
    return {key: file for key, file in found.items() if file is not None}


def _pair(n: int, name: str, ours: str, other: str, rng: np.random.Generator) -> Pair:
    side = SIDES[int(rng.integers(2))]
    left, right = (ours, other) if side == "left" else (other, ours)
    return Pair(n, name, side, left, right)


def _gather(folder: Path, file: Path, kind: str) -> str:
    """Puts a clip into the study's folder, "spoilt" or as it is, and gives its name there."""
    name = hashlib.sha256(kind.encode() + file.read_bytes()).hexdigest()[:24] + ".mp4"
    if not (folder / name).exists():
        content = encoded(*spoilt(*steady(file))) if kind else playable(file)
        write_whole(folder / name, content)
    return name


def spoilt(frames: np.ndarray, fps: float) -> tuple[np.ndarray, float]:
    """A clip that nobody who looks prefers: coarse blocks, frames in another order."""
    block = max(2, min(frames.shape[1:3]) // 6)
    coarse = frames[:, ::block, ::block].repeat(block, 1).repeat(block, 2)
    coarse = coarse[:, : frames.shape[1], : frames.shape[2]]
    return coarse[np.random.default_rng(0).permutation(len(frames))], fps

"""What the videos of a folder were made from: a file beside the folder, never in it.

VBench takes the ending of all videos from the first file of their folder, so nothing else may lie there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oneforcing_jax.data.video import Clip
from oneforcing_jax.errors import InputError
from oneforcing_jax.evaluation.vbench.suite import Suite
from oneforcing_jax.generation import pretrained
from oneforcing_jax.generation.jobs import Job
from oneforcing_jax.generation.making import Making
from oneforcing_jax.system import integrity, places, saved
from oneforcing_jax.system.files import read_record, write_whole


def beside(folder: Path) -> Path:
    """Where the record of a folder of videos is."""
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}.record.json")


def describe(
    making: Making,
    settings: Mapping[str, Any],
    seed: int,
    suite: Suite,
    texts: Mapping[str, str] | None,
) -> dict[str, Any]:
    """What the videos are made from, as far as it is known before the model is loaded.

    Args:
      making: the options.
      settings: what each video's file says of them.
      seed: sample k of every prompt has noise of this seed and k.
      suite: the list.
      texts: what is embedded in place of each prompt; None: the prompt itself.

    Raises:
      MissingInput, InputError: no such checkpoint or encoders.
    """
    loading = making.loading
    source = pretrained.find(loading.checkpoint, loading.ema, loading.dtype, loading.shift)
    weights = saved.find(source.folder)
    encoders = loading.encoders or pretrained.find_encoders(loading.checkpoint)
    sealed = integrity.sealed(weights)
    made: dict[str, Any] = {
        "checkpoint": str(places.absolute(weights)),
        "checksums_sha256": _digest((sealed / integrity.SUMS).read_bytes()) if sealed else None,
        "encoders": str(places.absolute(encoders)),
        "decoder": loading.decoder,
        "network": source.net,
        "config": dataclasses.asdict(source.config),
        "options": dict(settings),
        "seed": seed,
        "prompts_sha256": suite.digest,
        "rewritten_sha256": _digest("\n".join(texts.values()).encode()) if texts else None,
    }
    # As it is read back: tuples are lists, and what JSON does not know is its name.
    return json.loads(json.dumps(made, default=str))


def compare(folder: Path, made: Mapping[str, Any], jobs: Sequence[Job]) -> None:
    """Refuses a folder whose videos were made from something else.

    Raises:
      InputError: names what differs; or there are videos and no record.
    """
    file = beside(folder)
    if not file.exists():
        if any(job.path.exists() for job in jobs):
            raise InputError(
                f"--out: expected {file} beside the videos of {folder}, found none: nobody knows what "
                "they were made from; choose another folder"
            )
        return
    before = read_record(file)
    for key, value in made.items():
        if before.get(key) != value:
            raise InputError(
                f"--out: expected the {key} that {file} names, {str(before.get(key))[:200]}, found "
                f"{str(value)[:200]}; choose another folder"
            )


def keep(folder: Path, made: Mapping[str, Any], clip: Clip) -> None:
    """Writes the record, with what each video is."""
    content = {**made, "clip": dataclasses.asdict(clip)}
    write_whole(beside(folder), json.dumps(content, indent=1).encode())


def clip(folder: Path) -> Clip | None:
    """What each video of a folder should be; None where it has no record.

    Raises:
      InputError: a damaged record.
    """
    file = beside(folder)
    if not file.is_file():
        return None
    found = read_record(file, "clip")
    try:
        return Clip(**found)
    except TypeError:
        raise InputError(f"{file}: expected a clip's sizes, found {found}; make it again") from None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

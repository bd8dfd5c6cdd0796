"""A trained student and its encoders as one folder of ours, to be published: what `Pipeline.from_pretrained`
takes."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import oneforcing_jax
from oneforcing_jax.convert import card
from oneforcing_jax.convert.to_orbax import REVISION, main_dtype, save_item
from oneforcing_jax.convert.to_torch import Stored
from oneforcing_jax.errors import InputError
from oneforcing_jax.families import encoders, records
from oneforcing_jax.generation import pretrained
from oneforcing_jax.generation.pretrained import LAYOUT, Source
from oneforcing_jax.setup.dtypes import DTYPES
from oneforcing_jax.system import integrity, room
from oneforcing_jax.system.command import commit
from oneforcing_jax.system.files import FORM, MORE, VERSION, record, staged, write_whole

_ITEM = "params_generator"


class Student(NamedTuple):
    """A causal student that is to go out whole: what it was trained for, its weights, and the folder of its
    converted encoders."""

    source: Source
    stored: Stored
    beside: Path


def find(
    checkpoint: Path, out: Path, ema: bool = False, encoders_of: Path | None = None
) -> Student:
    """The student of a checkpoint.

    Args:
      checkpoint: a stage of a training run, or a converted student.
      out: the folder that it is to become.
      ema: the moving average.
      encoders_of: folder of codec and text encoder; None: the checkpoint's own.

    Raises:
      MissingInput, InputError: no causal student with converted encoders there; a folder that exists.
    """
    if out.exists() or out.suffix:
        raise InputError(f"{out}: expected the name of a new folder; choose another --out")
    source = pretrained.find(checkpoint, ema)
    source.check(teacher=False)
    beside = encoders.converted(encoders_of or pretrained.find_encoders(checkpoint))
    if not (beside / encoders.TEXT / records.TOKENIZER).is_dir():
        raise InputError(
            f"{beside}: expected a tokenizer in {encoders.TEXT}/, found none; copy it there"
        )
    product = functools.partial(pretrained.product, checkpoint, source.net)
    return Student(source, Stored(source.folder, source.net, ema, product), beside)


def export(student: Student, out: Path, dtype: str | None = None) -> None:
    """Packs it: weights and what they make, encoders, checksums, the draft of a card.

    Args:
      student: from `find`.
      out: the folder.
      dtype: of the weights, "float32" or "bfloat16"; None: as stored.

    Raises:
      InputError: too little memory or room on the disk.
    """
    source, stored, beside = student
    needed = room.size(stored.tree, DTYPES[dtype] if dtype else None)
    room.check_memory(f"weights of {stored.path}", needed, "pack it on a machine with more")
    room.check_disk(f"student of {stored.path}", needed, out)
    tree = stored.read(stored.paths)
    tree = jax.tree.map(lambda x: np.asarray(x, DTYPES[dtype]) if dtype else np.asarray(x), tree)
    with staged(out) as temporary:
        transformer = temporary / "transformer"
        save_item(transformer / records.STEP / _ITEM, tree)
        write_whole(transformer / records.MODEL, record(_said(source, tree)))
        integrity.seal(transformer)
        for name in (encoders.CODEC, encoders.TEXT):
            shutil.copytree(beside / name, temporary / name)
        packed = _packed(temporary, source)
        write_whole(temporary / card.README, card.draft(_known(temporary, packed)).encode())
    print(f"{stored.path} and the encoders of {beside} -> {out}; fill in {out / card.README}")


def _said(source: Source, tree: Any) -> dict[str, Any]:
    """The record of the weights, with what their family does not say."""
    net = pretrained.described(source) | {"dtype": main_dtype(tree)}
    return {VERSION: FORM, "nets": {_ITEM: net}}


def _packed(folder: Path, source: Source) -> Source:
    """What a folder was packed as, which must be the same student."""
    found = pretrained.find(folder)
    for name in ("family_name", *LAYOUT):
        if (was := getattr(source, name)) != (now := getattr(found, name)):
            raise InputError(f"{source.folder}: expected {name} {was} in its record, found {now}")
    return found


def _known(folder: Path, source: Source) -> dict[str, str]:
    """Words of the card."""
    time, space = source.family.strides
    frames, steps = 1 + time * (source.frames - 1), len(source.steps)
    size = f"{source.rows * space}x{source.columns * space}"
    read = records.read(folder / encoders.CODEC)
    revision = read.get(MORE, {}).get(REVISION)
    origin = f"{read.get('source')}" + (f" at {revision}" if revision else "")
    return {
        "makes": f"Videos have {frames} frames of {size}, {source.fps:g} a second, in "
        f"blocks of {source.block_frames} latent frames of {steps} step{'s' * (steps > 1)}.",
        "source": f"Codec and text encoder were converted from {origin}.",
        "packed": f"Packed by oneforcing_jax {oneforcing_jax.__version__} {commit()}".strip() + ".",
        "identity": f"the SHA-256 of those of the weights is {source.identity}.",
    }

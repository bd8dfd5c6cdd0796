"""The encoders of a folder: a codec and a text encoder, of whichever family it says.

codec, text, negative = load("weights")          # what tools/convert_wan.py wrote
latents = codec.encode(video)                     # uint8 [f, y, x, 3] -> [f, c, y, x]
embedding = text.encode("a cat")                  # [n, d], without padding
decode = codec.stream()                           # a decoder that carries its state
for block in student.stream(...):
    show(decode(block))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oneforcing_jax import families
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.families import records
from oneforcing_jax.families.codec import Encoders, Waiting
from oneforcing_jax.system import places
from oneforcing_jax.system.files import read_record, write_whole
from oneforcing_jax.system.files import record as record_of

# In a store this file names the folder of the encoders that filled it. In a folder of encoders its "kind" is
# their family; without it they are networks that tools/convert_wan.py wrote, whose own records name it.
ENCODERS = "encoders.json"
# Folders of converted ones.
CODEC, TEXT = "vae", "text"


def load(
    folder: str | Path,
    text_len: int | None = None,
    dtype: Any = None,
    mesh: Any = None,
    decoder: str | None = None,
    weights: bool = True,
    later: bool = False,
) -> Encoders:
    """The encoders in a folder.

    Args:
      folder: of encoders, or a store, which knows the encoders that filled it.
      text_len: the most tokens of a prompt, where the encoder does not fix it; None: as published.
      dtype: of the codec's arithmetic; None: as its weights are stored.
      mesh: over which a codec splits videos and their columns; None: all devices, a video each.
      decoder: of the family's `decoders`; None: the codec's own.
      weights: read those that take a minute; without them there are sizes and digests alone.
      later: let a text encoder that can read its weights when the first prompt needs them.

    Raises:
      MissingInput, InputError: nothing of the kind there, or damaged.
    """
    folder = _folder(folder)
    said = _said(folder)
    kind = "kind" in said
    family = families.find(said["kind"], folder / ENCODERS) if kind else _converted(folder)
    try:
        family.check_decoder(decoder)
    except InputError as error:
        raise InputError(f"encoders {folder}: {error}") from None
    codec, text = family.load(folder, text_len, dtype, mesh, decoder, weights)
    if weights and not later and isinstance(text, Waiting):
        text.ready()
    return Encoders(codec, text, family.video.negative)


def converted(folder: str | Path) -> Path:
    """The folder of encoders that tools/convert_wan.py wrote, of such a folder or of a store.

    Raises:
      MissingInput, InputError: nothing of the kind there, or encoders of a family that is not converted.
    """
    folder = _folder(folder)
    if kind := _said(folder).get("kind"):
        raise InputError(
            f"encoders {folder}: expected {CODEC}/ and {TEXT}/ as tools/convert_wan.py writes them, found "
            f"those of {kind}; give a student of a converted family"
        )
    _converted(folder)
    return folder


def _folder(folder: str | Path) -> Path:
    """The folder of encoders, where that may be a store, which knows it."""
    folder = places.path(folder)
    said = _said(folder)
    return places.normal(places.within(folder, said["folder"])) if "folder" in said else folder


def _converted(folder: Path) -> families.Family:
    """The family of networks that tools/convert_wan.py wrote into a folder."""
    codec = folder / CODEC
    if not (codec / records.MODEL).is_file() or not (folder / TEXT / records.MODEL).is_file():
        raise MissingInput(
            f"no encoders in {folder}: expected {CODEC}/ and {TEXT}/ as tools/convert_wan.py writes them, "
            f"or an {ENCODERS} that says their kind; give the folder that holds them"
        )
    net = records.read(codec, "nets", "params_model")
    return families.of(net, codec / records.MODEL)


def _said(folder: Path) -> dict[str, str]:
    file = folder / ENCODERS
    said: dict[str, str] = read_record(file) if file.is_file() else {}
    return said


def are_in(folder: Path) -> bool:
    """Whether a folder holds encoders, or is a store that knows its own."""
    return (folder / ENCODERS).is_file() or (folder / CODEC).exists()


def say_kind(folder: str | Path, kind: str) -> None:
    """Notes in a folder of encoders what family they are of."""
    write_whole(places.path(folder) / ENCODERS, record_of({"kind": kind}))


def record(store: str | Path, folder: str | Path) -> None:
    """Notes in a store where its encoders are, by a path that holds when both are moved."""
    inner = places.relative(places.path(folder), places.path(store))
    write_whole(places.path(store) / ENCODERS, record_of({"folder": inner}))

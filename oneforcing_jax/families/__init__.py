"""Families of models: one file a release, which says what its networks, their codec and their videos are.

A family's file holds FAMILY, a `Family`. A config, the record of a network (model.json) and a folder of
encoders (encoders.json) name the file ("wan21"), or the dotted path of a module elsewhere, such as the toy's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from oneforcing_jax.errors import InputError
from oneforcing_jax.families.codec import Codec, TextEncoder
from oneforcing_jax.models.model import Model
from oneforcing_jax.setup import parts
from oneforcing_jax.setup.run import Run
from oneforcing_jax.sharding import unbox
from oneforcing_jax.system.files import MORE

# Records and configs that name none are of it, for releases before families knew this one alone.
FIRST = "wan21"
# What records of those releases call it.
_OLD = "Wan2.1"
# In the record of a network, below `MORE`, and in a config.
FIELD = "family"


@dataclasses.dataclass(frozen=True)
class Video:
    """What the videos of a family are, unless a run or the user says otherwise.

    Attributes:
      frames, rows, columns: in pixels.
      fps: frames a second.
      shift: of the noise schedule.
      steps, first_steps: unwarped timesteps of a block, and of a first block that sees nothing.
      sampling_steps: of the many-step model.
      guidance: g in uncond + g (cond - uncond), of the many-step model.
      negative: the prompt of uncond.
    """

    frames: int
    rows: int
    columns: int
    fps: float
    shift: float
    steps: tuple[float, ...]
    first_steps: tuple[float, ...]
    sampling_steps: int
    guidance: float
    negative: str


class Network(NamedTuple):
    """One network of a release, as its published files and our records hold it.

    Attributes:
      config: published sizes of it, a frozen dataclass; records name its class, and sizes that they do not
        tell are these.
      init: (config, key) to its parameters, boxed with their axes; a transformer's may take a critic's head.
      read: its config and key map, from the shapes of its tensors in any published layout; called as
        read(shapes, source, settings), where errors name the source and settings are its config.json. A
        transformer's takes `num_heads`, which shapes may not tell, and a `prefix` of all names, too.
      unread: beginnings of names of tensors that published files may hold beside it.
    """

    config: Any
    init: Callable[..., Any]
    read: Callable[..., tuple[Any, Any]]
    unread: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Family:
    """A release of models.

    Attributes:
      video: defaults of its videos.
      channels, strides: of its latents, and pixels a latent in time and in space.
      model: a transformer's record, from its sizes.
      load: codec and text encoder of a folder, called as load(folder, text_len, dtype, mesh, decoder,
        weights), see `encoders.load`.
      outline: both at their published sizes, without weights, for plans, called as outline(dtype, decoder).
      decoders: names of decoders that may take the place of the codec's own.
      models: sizes of its published transformers.
      networks: by their names among converted files: "transformer", "vae", "text", ...
      students: latent frames of a block of its published students.
      frame_levels: whether its many-step model is told a noise level for every frame, and so takes first
        frames that are given, clean, at 0.
    """

    video: Video
    channels: int
    strides: tuple[int, int]
    model: Callable[[Any], Model]
    load: Callable[..., tuple[Codec, TextEncoder]]
    outline: Callable[..., tuple[Codec, TextEncoder]]
    decoders: tuple[str, ...] = ()
    models: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    networks: Mapping[str, Network] = dataclasses.field(default_factory=dict)
    students: Mapping[str, int] = dataclasses.field(default_factory=dict)
    frame_levels: bool = False

    @property
    def latents(self) -> tuple[int, int, int]:
        """Frames, rows and columns of the latents of its videos; the first frame has one of its own."""
        (time, space), video = self.strides, self.video
        return 1 + (video.frames - 1) // time, video.rows // space, video.columns // space

    def abstract(self, config: Any, head: Any = None) -> Any:
        """Shapes of the parameters of a network of these sizes; with a head, of a critic."""
        init = next(net.init for net in self.networks.values() if type(config) is type(net.config))
        return _abstract(init, config, *([head] if head else []))

    def check_decoder(self, decoder: str | None) -> None:
        """Refuses a decoder that the family has not.

        Raises:
          InputError: names those that it has.
        """
        if decoder not in (None, *self.decoders):
            known = f"one of {', '.join(self.decoders)}" if self.decoders else "none"
            raise InputError(
                f"decoder: expected {known}, as the family of these has, found {decoder!r}; leave it out"
            )

    def block_frames(self, student: str) -> int:
        """Latent frames of a block of a published student.

        Raises:
          InputError: there is none of that name.
        """
        if student not in self.students:
            raise InputError(
                f"method: expected a student of its family among {', '.join(self.students) or 'none'}, found "
                f"{student!r}; leave it out"
            )
        return self.students[student]


def find(name: str, folders: Path | None = None) -> Family:
    """A family, by the name of its file or the dotted path of its module; see `parts.find`.

    Raises:
      InputError: there is none, or a folder names one that nobody trusts.
    """
    try:
        family: Family = parts.find(name, __name__, "FAMILY", Family, folders)
    except InputError as error:
        raise InputError(f"family: {error}") from None
    return family


def of(net: Mapping[str, Any], file: Path) -> Family:
    """The family that the record of a network names.

    Args:
      net: the network's part of model.json.
      file: that record, of a folder that may come from anywhere.

    Raises:
      InputError: see `find`.
    """
    return find(name_of(net), file)


def name_of(net: Mapping[str, Any]) -> str:
    """The family that the record of a network names."""
    more = net.get(MORE)
    name = more.get(FIELD) if isinstance(more, Mapping) else None
    return FIRST if name in (None, _OLD) else name


def of_run(run: Run) -> Family:
    """The family that a config names; InputError: see `find`."""
    return find(run.family or FIRST, run.read_from)


@functools.lru_cache(maxsize=32)
def _abstract(init: Callable[..., Any], config: Any, *head: Any) -> Any:
    return unbox(jax.eval_shape(lambda: init(config, jax.random.key(0), *head)))

"""From prompts to frames: load once, then stream videos block by block.

model = streaming.load("weights/framewise", encoders="weights/wan")
for frames in model.stream("a cat on a beach"):          # uint8 [m, y, x, 3], as they are made
    show(frames)

prompt = lambda frame: "a cat" if frame < 9 else "a dog"  # asked before each block
for frames in model.stream(prompt, model.settings(frames=161)):
    ...                                                   # break at any time
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from oneforcing_jax import sharding
from oneforcing_jax.causal.cache import Window
from oneforcing_jax.data.images import fit
from oneforcing_jax.errors import InputError, NotFinite
from oneforcing_jax.families import Family, kept
from oneforcing_jax.families import encoders as encoding
from oneforcing_jax.families.codec import Codec, Encoders, TextEncoder, Waiting, pad_embeddings
from oneforcing_jax.generation import pretrained, reduced, samplers
from oneforcing_jax.generation.noise import Noise, sample_keys, seeded
from oneforcing_jax.generation.pretrained import Source
from oneforcing_jax.generation.student import Conditions, Settings, Student
from oneforcing_jax.generation.teacher import Teacher
from oneforcing_jax.models.condition import NEGATIVE, Condition, prompted
from oneforcing_jax.models.model import unstacked
from oneforcing_jax.models.products.eight_bits import EightBits

# Latents of real clips stay below 10 or so. What is beyond this, or no number, is no picture when decoded.
BEYOND = 1e6
# Settings of a video that are as the source was trained, unless they are chosen.
_TRAINED = ("block_frames", "steps", "first_frames", "first_steps")


def decoded(
    blocks: Iterable[jax.Array], decode: Callable[[jax.Array], jax.Array]
) -> Iterator[tuple[jax.Array, np.ndarray]]:
    """Latents [b, n, c, y, x] and frames uint8 [b, m, y, x, 3] of each block.

    They come one block late: while a block's frames come to the host and are used there, the device
    already has the next block and its decoding to do.

    Raises:
      NotFinite: latents that are not finite, or too large to decode; their frames are not handed out.
    """
    waiting = None
    for latents in blocks:
        queued = latents, decode(latents), (jnp.abs(latents) < BEYOND).sum()
        if waiting is not None:
            yield _on_host(*waiting)
        waiting = queued
    if waiting is not None:
        yield _on_host(*waiting)


def _on_host(
    latents: jax.Array, frames: jax.Array, finite: jax.Array
) -> tuple[jax.Array, np.ndarray]:
    if wrong := jnp.size(latents) - int(finite):
        raise NotFinite(
            f"latents: expected finite values below {BEYOND:g}, found {wrong} of {jnp.size(latents)} that "
            "are not; check the weights with tools/check.py, or give --dtype=float32"
        )
    return latents, np.asarray(frames)


def settings_of(
    source: Source,
    codec: Codec,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    **changes: Any,
) -> Settings:
    """`VideoModel.settings`, before weights are read."""
    trained_frames, *trained_size = codec.video_shape(source.frames, source.rows, source.columns)
    sizes = trained_frames if frames is None else frames, *(size or trained_size)
    shape = codec.latent_shape(*sizes)
    source.config.frame_tokens(*shape[2:])
    return Settings(shape, **({name: getattr(source, name) for name in _TRAINED} | changes))


class Words(NamedTuple):
    """How prompts are embedded.

    Attributes:
      host: the text encoder lies in the memory of the host, and its processors run it.
      kept: a folder of embeddings that were made before, see `families.kept`; what is there needs no encoder.
    """

    host: bool = False
    kept: Path | None = None

    def placed(self, text: TextEncoder) -> TextEncoder:
        """The text encoder where it is to be."""
        if not self.host or not isinstance(text, Waiting):
            return text
        moved = text.on_host()
        if not self.kept and isinstance(moved, Waiting):
            moved.ready()
        return moved

    def encode(self, text: TextEncoder) -> Callable[[str], np.ndarray]:
        """An embedding [n, d] of a prompt."""
        return kept.encoder(text, self.kept) if self.kept else text.encode


class Maker(Protocol):
    """A `Student`, or a `Teacher`."""

    @property
    def stream(self) -> Callable[..., Iterator[jax.Array]]:
        """See `Student.stream`."""

    def prepare(self, condition: Condition) -> Condition:
        """See `Student.prepare`."""


class VideoModel:
    """Encoders and a transformer, ready to make videos.

    Args:
      maker: makes latents.
      source: what the transformer was trained for.
      encoders: codec and text encoder.
      mesh: devices over which a batch is split; None: the default device.
      encode: in place of the text encoder's own, such as `kept.encoder`.

    Attributes:
      encode: a prompt's embedding [n, d]. The samples of a prompt come one after the other: it keeps some.
    """

    def __init__(
        self,
        maker: Maker,
        source: Source,
        encoders: Encoders,
        mesh: Any = None,
        encode: Callable[[str], np.ndarray] | None = None,
    ) -> None:
        self.maker, self.source, self.encoders, self.mesh = maker, source, encoders, mesh
        self.encode = functools.lru_cache(maxsize=16)(encode or encoders.text.encode)

    def settings(
        self, frames: int | None = None, size: tuple[int, int] | None = None, **changes: Any
    ) -> Settings:
        """Settings of a video.

        Args:
          frames: pixel frames; None: as many as the model was trained on.
          size: pixel rows and columns; None: those that the model was trained on.
          changes: other fields of `Settings`; those that are left out are as trained, too.

        Raises:
          InputError: sizes that codec or transformer cannot take.
        """
        return settings_of(self.source, self.encoders.codec, frames, size, **changes)

    def place(self, x: Any) -> jax.Array:
        """An array on the devices, split over its batch axis 0."""
        if self.mesh is None:
            return jnp.asarray(x)
        return jax.device_put(x, NamedSharding(self.mesh, sharding.spec(("batch",))))

    def embed(self, prompts: Sequence[str]) -> Condition:
        """The condition of a batch of prompts, prepared.

        Raises:
          InputError: an empty prompt, or one that the encoder refuses.
        """
        if any(not prompt.strip() for prompt in prompts):
            raise InputError("prompt: expected words, found an empty prompt; say what to show")
        rows = [self.encode(prompt) for prompt in prompts]
        return self.prepared(pad_embeddings(rows, self.source.config.text_len))

    def prepared(self, text: Any) -> Condition:
        """The condition of embeddings [b, s, d], zero beyond each prompt's end, prepared."""
        return self.maker.prepare(prompted(self.place(text)))

    def continued_latents(
        self, video: np.ndarray, settings: Settings, log: Callable[[str], None] = print
    ) -> jax.Array:
        """Latents [1, f, c, y, x] of frames uint8 [f, y, x, 3] that a video is to continue.

        They are scaled to cover the video's size, and the middle is kept. The codec takes certain
        numbers of frames; what is over is dropped at the beginning. Both are logged.
        """
        codec, found, (f, _, y, x) = self.encoders.codec, video.shape[:3], settings.shape
        _, rows, columns = codec.video_shape(f, y, x)
        video = fit(video, rows, columns)
        while len(video) > 1 and not _fits(codec, video.shape[:3]):
            video = video[1:]
        if video.shape[1:3] != found[1:]:
            log(f"{found[1]}x{found[2]} scaled to cover {rows}x{columns}, the middle kept")
        if len(video) != found[0]:
            log(f"the last {len(video)} of {found[0]} frames kept, which the codec takes")
        # They go through the host, because the codec decides by itself where it lays them.
        return jnp.asarray(np.asarray(codec.encode(video)))[None]

    def videos(
        self,
        noise: Noise,
        conditions: Conditions,
        settings: Settings,
        given: jax.Array | None = None,
        **more: Any,
    ) -> Iterator[tuple[jax.Array, np.ndarray]]:
        """Latents and frames of a batch of videos, block by block; see `decoded`.

        Args:
          noise, conditions: see `Student.stream`.
          settings: of all of them.
          given: [b, f0, c, y, x] first latents; the videos begin with their frames.
          more: keywords of `Student.stream`.
        """
        plan = settings.plan(self.source.shift, 0 if given is None else given.shape[1])
        blocks: Iterable[jax.Array] = self.maker.stream(noise, conditions, plan, given, **more)
        if given is not None:
            blocks = itertools.chain([given], blocks)
        return decoded(blocks, self.encoders.codec.stream())

    def stream(
        self,
        prompt: str | Callable[[int], str],
        settings: Settings | None = None,
        seed: int = 0,
        given: jax.Array | None = None,
        **more: Any,
    ) -> Iterator[np.ndarray]:
        """Frames uint8 [m, y, x, 3] of one video, block by block as they are made.

        Args:
          prompt: what to show; a function is asked before each block, with the number of the latent
            frame that it begins with, and so switches prompts. The block after the one that is
            handed out is on its way already.
          settings: from `self.settings(...)`.
          seed: of the noise, which belongs to a frame: a longer video begins with the shorter one.
          given: [1, f0, c, y, x] first latents, from `continued_latents`, or from another video.
          more: keywords of `Student.stream`: `recompute`, `window`.
        """
        settings = settings or self.settings()
        embed = functools.lru_cache(maxsize=2)(lambda words: self.embed([words]))
        asked = (lambda frame: embed(prompt(frame))) if callable(prompt) else embed(prompt)
        noise = seeded(sample_keys([seed], [0]), settings.shape[1:])
        return (frames[0] for _, frames in self.videos(noise, asked, settings, given, **more))


def _fits(codec: Codec, sizes: Sequence[int]) -> bool:
    try:
        codec.latent_shape(*sizes)
    except InputError:
        return False
    return True


def _read(
    checkpoint: Any,
    encoders: Any,
    decoder: Any,
    ema: bool,
    dtype: Any,
    shift: Any,
    batch: int,
    words: Words,
    split: Any = None,
    teacher: bool = False,
    precision: EightBits | None = None,
) -> Any:
    source = pretrained.find(checkpoint, ema, dtype, shift)
    source.check(teacher)
    # Each video has the devices of `split`, and as many of those groups as divide the batch are used.
    devices, split = jax.local_devices(), dict(split or {})
    each = math.prod(split.values())
    if not 0 < each <= len(devices):
        raise InputError(
            f"mesh: expected {split} to take at most {len(devices)} devices, found {each}; change it"
        )
    data = math.gcd(batch, len(devices) // each)
    mesh = (
        sharding.make_mesh({"data": data} | split, devices[: data * each])
        if data * each > 1
        else None
    )
    if mesh:
        heads, tokens = (
            source.config.num_heads,
            source.config.frame_tokens(source.rows, source.columns),
        )
        sharding.check("attention heads", heads, "whole_heads", mesh)
        sharding.check("the tokens of a frame", tokens, "tokens", mesh)
    found = encoders or pretrained.find_encoders(checkpoint)
    over, later = mesh if each > 1 else None, bool(words.host or words.kept)
    loaded = encoding.load(
        found, source.config.text_len, source.config.dtype, over, decoder, later=later
    )
    _check_fit(source, loaded)
    loaded = loaded._replace(text=words.placed(loaded.text))
    if precision:
        source, params = reduced.load(source, precision, mesh)
    else:
        params = source.params(mesh)
    return source, loaded, mesh, params


def _check_fit(source: Source, encoders: Encoders) -> None:
    """Refuses encoders of another model, before its weights are read."""
    c = source.config
    found, expected = (encoders.text.dim, encoders.codec.channels), (c.text_dim, c.in_dim)
    if found != expected or c.in_dim != c.out_dim:
        raise InputError(
            f"encoders: expected embeddings of width {expected[0]} and latents of {expected[1]} "
            f"channels, as {source.folder} was trained with ({c.out_dim} channels out), found {found[0]} and "
            f"{found[1]}; name the encoders of this checkpoint"
        )


def load(
    checkpoint: str | Path,
    encoders: str | Path | None = None,
    *,
    decoder: str | None = None,
    ema: bool = False,
    dtype: str | None = None,
    shift: float | None = None,
    window: Window = Window(),
    batch: int = 1,
    split: Mapping[str, int] | None = None,
    words: Words = Words(),
    precision: EightBits | None = None,
) -> VideoModel:
    """A causal student with its encoders.

    Args:
      checkpoint, ema, dtype, shift: see `pretrained.find`.
      encoders: their folder; None: see `pretrained.find_encoders`.
      decoder: "tiny" for the tiny decoder; None: the VAE's.
      window: how far back a block sees; one with a size holds memory constant.
      batch: videos made side by side, which decides on how many devices.
      split: devices of each video along the mesh axes context, sequence and tensor; None: one device.
      words: where prompts are encoded, and what is kept of that.
      precision: matrices of eight bits; None: the weights in the compute dtype.

    Raises:
      MissingInput, InputError: one line on what is missing or does not fit.
    """
    source, loaded, mesh, params = _read(
        checkpoint, encoders, decoder, ema, dtype, shift, batch, words, split, precision=precision
    )
    student = Student(source.model, unstacked(params), window, mesh)
    return VideoModel(student, source, loaded, mesh, words.encode(loaded.text))


def load_teacher(
    checkpoint: str | Path,
    encoders: str | Path | None = None,
    *,
    decoder: str | None = None,
    sampler: Callable[[Family, float], samplers.Sampler],
    guidance: Callable[[Family], float],
    ema: bool = False,
    dtype: str | None = None,
    shift: float | None = None,
    batch: int = 1,
    words: Words = Words(),
) -> VideoModel:
    """A bidirectional model with its encoders; a video is one block of many steps.

    Args:
      sampler: makes one for the family of the model and the shift of the noise schedule, such as `lambda
        family, shift: samplers.unipc(samplers.wan_grid(family.video.sampling_steps, shift))`.
      guidance: for the family of the model, see `samplers.sample`.
      checkpoint, encoders, decoder, ema, dtype, shift, batch, words: see `load`.
    """
    source, loaded, mesh, params = _read(
        checkpoint, encoders, decoder, ema, dtype, shift, batch, words, teacher=True
    )
    encode = words.encode(loaded.text)
    negative = pad_embeddings([encode(loaded.negative)], source.config.text_len)[0]
    null = source.model.null({NEGATIVE: jnp.asarray(negative)})
    scale = guidance(source.family)
    steps = sampler(source.family, source.shift)
    told = source.family.frame_levels
    teacher = Teacher(source.model, params, null, steps, scale, mesh, told)
    return VideoModel(teacher, source, loaded, mesh, encode)

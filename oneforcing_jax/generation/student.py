"""A causal student as a stream: clean latents block by block, in memory that does not grow with them."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from oneforcing_jax import sharding
from oneforcing_jax.causal import cache as kv
from oneforcing_jax.causal.cache import Caches, Window
from oneforcing_jax.causal.generate import Generator, clean_block, denoise_block
from oneforcing_jax.causal.plan import (
    Block,
    BlockDraws,
    ClipDraws,
    Plan,
    bucket,
    make_plan,
    num_frames,
)
from oneforcing_jax.errors import InputError
from oneforcing_jax.models.wan import KeyValue, WanConfig, WanDiT
from oneforcing_jax.system import room

# Noise of the block whose first frame has the given number.
Noise = Callable[[int, Block], BlockDraws]
# Prompt embeddings [b, s, d], or a function that gives them for the block whose first frame has a number.
Text = jax.Array | Callable[[int], jax.Array]
# Graphs of kernels take longer to begin than the kernels, each by itself, while a block is waited for.
COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {"gpu": {"xla_gpu_enable_command_buffer": ""}}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a video is: its latents and its blocks. Steps are unwarped timesteps.

    Attributes:
      shape: (f, c, y, x) of the latents, given first frames included.
      block_frames, steps: of every block.
      first_frames, first_steps: of the first block; None: as the others. A video that continues
        given frames has no first block of its own.
    """

    shape: tuple[int, int, int, int]
    block_frames: int
    steps: tuple[float, ...]
    first_frames: int | None = None
    first_steps: tuple[float, ...] | None = None

    def plan(self, shift: float, given: int = 0) -> Plan:
        """The blocks after `given` latent frames.

        Raises:
          InputError: frames that the blocks do not fill, a bad step list, nothing left to make.
        """
        frames, own = self.shape[0] - given, self.taken(given > 0)
        if frames < 1:
            raise InputError(
                f"frames: expected more than the {given} given latent frames, found {self.shape[0]} "
                "in all; ask for a longer video"
            )
        first = own.first_frames, own.first_steps
        return make_plan(frames, self.block_frames, self.steps, shift, *first)

    def taken(self, continues: bool) -> Settings:
        """With what the first block takes; in a video that `continues` given frames it is as the others."""
        frames = (not continues and self.first_frames) or self.block_frames
        steps = (not continues and self.first_steps) or self.steps
        return dataclasses.replace(self, first_frames=frames, first_steps=steps)


def sample_keys(seeds: Sequence[int], numbers: Sequence[int]) -> jax.Array:
    """[b] random keys, of sample `number` of a prompt whose seed is `seed`; InputError for a seed that is
    negative or has more than 32 bits."""
    wrong = [seed for seed in seeds if not 0 <= seed < 2**32]
    if wrong:
        raise InputError(f"seed: expected a number from 0 to 2^32 - 1, found {wrong[0]}")
    keys: jax.Array = jax.vmap(
        lambda seed, number: jax.random.fold_in(jax.random.key(seed), number)
    )(np.array(seeds, np.uint32), np.array(numbers, np.uint32))
    return keys


def seeded(keys: jax.Array, shape: tuple[int, int, int]) -> Noise:
    """Noise that belongs to the number of a frame: neither blocks nor the video's length change it.

    Args:
      keys, shape: [b], one a sample, and (c, y, x) of a latent frame.
    """
    return lambda start, block: _frames(keys, start, block.frames, len(block.sigmas), shape)


@functools.partial(jax.jit, static_argnames=("frames", "steps", "shape"))
def _frames(
    keys: jax.Array, start: Any, frames: int, steps: int, shape: tuple[int, ...]
) -> BlockDraws:
    def one(key: jax.Array, frame: jax.Array, step: int) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, frame), step), shape)

    samples = jax.vmap(jax.vmap(one, (None, 0, None)), (0, None, None))
    draws = [samples(keys, start + jnp.arange(frames), step) for step in range(steps)]
    return BlockDraws(draws[0], jnp.stack(draws[1:], 1) if steps > 1 else None, None)


def recorded(draws: ClipDraws, first: int = 0) -> Noise:
    """Noise of a clip that was drawn whole, the first of its frames being number `first`."""
    if draws.context is not None:
        raise InputError("stream: expected draws without context noise, which training alone has")

    def noise(start: int, block: Block) -> BlockDraws:
        frames = slice(start - first, start - first + block.frames)
        more = draws.renoise if len(block.sigmas) > 1 else None
        return BlockDraws(
            draws.start[:, frames], None if more is None else more[:, :, frames], None
        )

    return noise


class Student:
    """A causal generator, compiled once for each shape of block.

    Its cache lies as the layers of the parameters do: stacked, or apart (`params.unstacked`), where every
    layer reads and updates a buffer of its own in place.

    Args:
      config: of the transformer.
      params: its parameters.
      window: how far back a block sees; with a size, memory is constant in the length of the video.
      mesh: devices over which a batch, and the tokens and heads of a video, are split; None: the default
        device.
    """

    def __init__(
        self, config: WanConfig, params: Any, window: Window = Window(), mesh: Mesh | None = None
    ) -> None:
        self.config, self.params, self.window, self.mesh = config, params, window, mesh
        apply = WanDiT(config).apply

        def generator(params: Any, window: Window) -> Generator:
            return Generator(functools.partial(apply, {"params": params}), config, window)

        static = ("block", "limit", "window")
        with self._mesh():
            options = COMPILER_OPTIONS.get(sharding.target().platform)
        jit = functools.partial(jax.jit, donate_argnames="cache", compiler_options=options)

        @functools.partial(jit, static_argnames=static)
        def step(
            params: Any,
            cache: Caches,
            text: KeyValue,
            draws: BlockDraws,
            before: Any,
            start: Any,
            block: Block,
            limit: int,
            window: Window,
        ) -> tuple[jax.Array, Caches]:
            g = generator(params, window)
            x0, _, cache = denoise_block(g, cache, text, block, draws, before, start, limit)
            return x0, cache

        @functools.partial(jit, static_argnames=static[1:])
        def context(
            params: Any,
            cache: Caches,
            text: KeyValue,
            x: jax.Array,
            start: Any,
            limit: int,
            window: Window,
        ) -> Caches:
            return clean_block(generator(params, window), cache, text, x, start, limit)

        self._step, self._context = step, context
        self._text = jax.jit(lambda p, text: apply({"params": p}, text, method="text_key_value"))

    def of(self, params: Any) -> Student:
        """The same compiled programs with other parameters."""
        other = copy.copy(self)
        other.params = params
        return other

    def stream(
        self,
        noise: Noise | ClipDraws,
        text: Text,
        plan: Plan,
        given: jax.Array | None = None,
        *,
        recompute: bool = False,
        window: Window | None = None,
    ) -> Iterator[jax.Array]:
        """Clean latents [b, frames of the block, c, y, x], block by block as they are asked for.

        This only queues work and waits for nothing. So a caller that asks for the next block before
        it reads the last one keeps the device busy.

        Args:
          noise: `seeded`, `recorded`, or the draws of a whole clip.
          text: prompt embeddings; a function is asked before each block. A block and the context
            that it leaves are made with one prompt; to keep one, return the same array.
          plan: blocks and their steps, without the given frames.
          given: [b, f0, c, y, x] clean latents that the video continues, taken in blocks of the size
            of the plan's last. Frame numbers count them.
          recompute: with a new prompt the frames that the next block sees pass anew under it, as given ones
            do; else they keep what they were under the old one.
          window: instead of the student's own; each has programs of its own.
        """
        window = window or self.window
        for block in plan:
            window.check_block(block.frames)
        # Rotary positions begin anew where the context does; noise belongs to the number of a frame.
        start = position = _frames_of(given)
        draw = recorded(noise, start) if isinstance(noise, ClipDraws) else noise
        slots = window.slots(start + num_frames(plan))
        past = _Past(window, given) if recompute else None
        cache: Any = None
        before: jax.Array | None = None
        prompt, text_kv = None, None
        for block in plan:
            draws = draw(start, block)
            asked = text(start) if callable(text) else text
            if asked is not prompt:
                if past is not None and prompt is not None:
                    given, cache, before = past.seen(block.frames), None, None
                    position = _frames_of(given)
                elif before is not None:
                    done = position - before.shape[1]
                    cache = self._clean(cache, text_kv, before, done, slots, window)
                    before = None
                prompt, text_kv = asked, self._run(self._text, self.params, asked)
            if cache is None:
                cache = self._empty(draws.start.shape, slots)
                if given is not None:
                    size = plan[-1].frames
                    cache, before = self._prefill(cache, text_kv, given, size, slots, window)
            limit = self._limit(position + block.frames, slots)
            state = self.params, cache, text_kv, draws, before, jnp.int32(position)
            before, cache = self._run(self._step, *state, block, limit, window)
            start, position = start + block.frames, position + block.frames
            if past is not None:
                past.add(before)
            yield before

    def clip(self, noise: Noise | ClipDraws, text: Text, plan: Plan) -> jax.Array:
        """The whole clip [b, f, c, y, x]."""
        return jnp.concatenate(list(self.stream(noise, text, plan)), 1)

    def _prefill(
        self, cache: Caches, text: Any, given: jax.Array, size: int, slots: int, window: Window
    ) -> tuple[Caches, jax.Array]:
        """Clean passes of all given blocks but the last, which shares one with the first noisy block."""
        last = (given.shape[1] - 1) // size * size
        for start in range(0, last, size):
            part = given[:, start : start + size]
            cache = self._clean(cache, text, part, start, slots, window)
        return cache, given[:, last:]

    def _clean(
        self, cache: Caches, text: Any, x: jax.Array, start: int, slots: int, window: Window
    ) -> Caches:
        limit = self._limit(start + x.shape[1], slots)
        at = jnp.int32(start)
        return self._run(self._context, self.params, cache, text, x, at, limit, window)

    def _limit(self, frames: int, slots: int) -> int:
        """Slots, of all, that a program reads when the video has so many frames. Where kernels skip what is
        not there yet, one program serves all blocks; elsewhere each part of the cache has a program."""
        with self._mesh():
            part = bucket(slots)
        return min(slots, -(-frames // part) * part)

    def _empty(self, shape: tuple[int, ...], slots: int) -> Caches:
        tokens = self.config.frame_tokens(*shape[-2:])
        stacked = not isinstance(self.params["blocks"], tuple)
        devices = jax.local_devices()[:1] if self.mesh is None else list(self.mesh.devices.flat)
        needed = kv.size(self.config, shape[0], slots, tokens)
        room.check_memory(
            f"cache of {slots} latent frames",
            needed,
            "make a shorter video or a smaller batch, or give a window",
            devices,
        )
        return self._run(_empty, self.config, shape[0], slots, tokens, stacked)

    def _run(self, program: Callable[..., Any], *arguments: Any) -> Any:
        with self._mesh():
            return program(*arguments)

    def _mesh(self) -> Any:
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


def _frames_of(given: jax.Array | None) -> int:
    return 0 if given is None else int(given.shape[1])


class _Past:
    """The clean latents that later blocks may see.

    Args:
      window: how far back they see.
      given: [b, f, c, y, x] frames that the video begins with, or None.
    """

    def __init__(self, window: Window, given: jax.Array | None) -> None:
        self._window = window
        self._sink: list[jax.Array] = []
        self._recent: collections.deque[jax.Array] = collections.deque(
            maxlen=None if window.size is None else window.size - window.sink
        )
        if given is not None:
            self.add(given)

    def add(self, latents: jax.Array) -> None:
        """Takes in the next frames [b, f, c, y, x]."""
        for frame in jnp.split(latents, latents.shape[1], 1):
            kept = self._sink if len(self._sink) < self._window.sink else self._recent
            kept.append(frame)

    def seen(self, frames: int) -> jax.Array | None:
        """What the next block, of so many frames, sees of them; None: nothing."""
        size, recent = self._window.size, list(self._recent)
        if size is not None:
            recent = recent[max(0, len(recent) - (size - self._window.sink - frames)) :]
        seen = [*self._sink, *recent]
        return jnp.concatenate(seen, 1) if seen else None


_empty = jax.jit(kv.init, static_argnums=(0, 1, 2, 3, 4))

"""A causal student as a stream: clean latents block by block, in memory that does not grow with them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

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
from oneforcing_jax.generation.noise import Noise, recorded
from oneforcing_jax.generation.past import Clean, Past
from oneforcing_jax.models.condition import CLIP, FRAME, Condition, cut, joined
from oneforcing_jax.models.model import Model
from oneforcing_jax.models.trees import Params
from oneforcing_jax.system import room

# Conditions that `Student.prepare` prepared: of the whole video, or a function that gives them for the block
# whose first frame has a number, and their frames from that one on.
Conditions = Condition | Callable[[int], Condition]
# Graphs of kernels take longer to begin than the kernels, each by itself, while a block is waited for. And a
# product that XLA first plans for Triton goes to cuBLAS after all, but then without the GELU that cuBLAS can
# compute with it: one more kernel a layer, 1.2 of a block's 38 ms at 480x832.
COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {
    "gpu": {"xla_gpu_enable_command_buffer": "", "xla_gpu_enable_triton_gemm": False}
}


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


class Program(NamedTuple):
    """A program as an abstract call.

    Attributes:
      blocks: numbers of the blocks that it makes; (): it prepares a condition.
      call: the jitted function.
      arguments: shapes, dtypes and shardings of its arrays, and what is static.
    """

    blocks: tuple[int, ...]
    call: Any
    arguments: tuple[Any, ...]


class Student:
    """A causal generator, compiled once for each shape of block.

    Its cache lies as the layers of the parameters do: stacked, or apart (`model.unstacked`), where every
    layer reads and updates a buffer of its own in place.

    Args:
      model: the transformer.
      params: its parameters.
      window: how far back a block sees; with a size, memory is constant in the length of the video.
      mesh: devices over which a batch, and the tokens and heads of a video, are split; None: the default
        device.
    """

    def __init__(
        self, model: Model, params: Params, window: Window = Window(), mesh: Mesh | None = None
    ) -> None:
        self.model, self.params, self.window, self.mesh = model, params, window, mesh
        static = ("block", "limit", "window")
        with self._mesh():
            options = COMPILER_OPTIONS.get(sharding.target().platform)
        jit = functools.partial(jax.jit, donate_argnames="cache", compiler_options=options)

        @functools.partial(jit, static_argnames=static)
        def step(
            params: Params,
            cache: Caches,
            condition: Condition,
            draws: BlockDraws,
            before: Any,
            start: Any,
            block: Block,
            limit: int,
            window: Window,
        ) -> tuple[jax.Array, Caches]:
            g = Generator(model, params, window)
            x0, _, cache = denoise_block(g, cache, condition, block, draws, before, start, limit)
            return x0, cache

        @functools.partial(jit, static_argnames=static[1:])
        def context(
            params: Params,
            cache: Caches,
            condition: Condition,
            x: jax.Array,
            start: Any,
            limit: int,
            window: Window,
        ) -> Caches:
            return clean_block(Generator(model, params, window), cache, condition, x, start, limit)

        self._step, self._context = step, context
        self._prepare = jax.jit(model.prepare)

    def of(self, params: Any) -> Student:
        """The same compiled programs with other parameters."""
        other = copy.copy(self)
        other.params = params
        return other

    def prepare(self, condition: Condition) -> Condition:
        """With what belongs to the clip as every layer reads it. A video that is asked for with another
        prepared part than before changes there; with the same one it goes on."""
        return condition._replace(clip=self._run(self._prepare, self.params, condition.clip))

    def stream(
        self,
        noise: Noise | ClipDraws,
        conditions: Conditions,
        plan: Plan,
        given: jax.Array | None = None,
        *,
        recompute: bool = False,
        window: Window | None = None,
        clean: jax.Array | None = None,
    ) -> Iterator[jax.Array]:
        """Clean latents [b, frames of the block, c, y, x], block by block as they are asked for.

        This only queues work and waits for nothing. So a caller that asks for the next block before
        it reads the last one keeps the device busy.

        Args:
          noise: `seeded`, `recorded`, or the draws of a whole clip.
          conditions: prepared, of all frames, given ones included. A function is asked before each
            block. A block and the context that it leaves are made with one clip's part; to keep it,
            return the same one.
          plan: blocks and their steps, without the given frames.
          given: [b, f0, c, y, x] clean latents that the video continues, taken in blocks of the size
            of the plan's last. Frame numbers count them.
          recompute: frames seen under a new clip's part pass anew, as given ones do; else they stay.
          window: instead of the student's own; each has programs of its own.
          clean: [b, f, c, y, x] latents that later blocks see in place of what was made, given ones included.
        """
        window = window or self.window
        for block in plan:
            window.check_block(block.frames)
        # Rotary positions begin anew where the context does; noise belongs to the number of a frame.
        start = position = 0 if given is None else given.shape[1]
        draw = recorded(noise, start) if isinstance(noise, ClipDraws) else noise
        slots = window.slots(start + num_frames(plan))
        seen: Clean | None = None
        if given is not None:
            # A function is asked for blocks alone, unless frames have conditions.
            said = self.model.takes_of(FRAME)
            seen = given, self._asked(conditions, 0, start, len(given)).frame if said else {}
        past = Past(window, seen) if recompute else None
        cache: Any = None
        before: Clean | None = None
        clip: Any = None
        for block in plan:
            draws = draw(start, block)
            asked = self._asked(conditions, start, block.frames, len(draws.start))
            own = asked.frame
            if asked.clip is not clip:
                if past is not None and clip is not None:
                    seen, cache, before = past.seen(block.frames), None, None
                    position = 0 if seen is None else seen[0].shape[1]
                elif before is not None:
                    done = position - before[0].shape[1]
                    cache = self._clean(cache, clip, before, done, slots, window)
                    before = None
                clip = asked.clip
            if cache is None:
                cache = self._empty(draws.start.shape, slots)
                if seen is not None:
                    size = plan[-1].frames
                    cache, before = self._prefill(cache, clip, seen, size, slots, window)
            limit = self._limit(position + block.frames, slots)
            latents, frames = (None, own) if before is None else (before[0], joined(before[1], own))
            state = self.params, cache, Condition(clip, frames), draws, latents
            made, cache = self._run(self._step, *state, jnp.int32(position), block, limit, window)
            before = (made if clean is None else clean[:, start : start + block.frames]), own
            start, position = start + block.frames, position + block.frames
            if past is not None:
                past.add(before)
            yield made

    def clip(self, noise: Noise | ClipDraws, conditions: Conditions, plan: Plan) -> jax.Array:
        """The whole clip [b, f, c, y, x]."""
        return jnp.concatenate(list(self.stream(noise, conditions, plan)), 1)

    def programs(self, plan: Plan, shape: tuple[int, int, int]) -> Iterator[Program]:
        """What `stream` runs for one video of latent frames (c, y, x), as abstract calls: first what prepares
        its condition, then its blocks. The parameters, too, may be abstract."""
        place = self._abstract
        takes = {n: place((1, *self.model.takes[n].shape)) for n in self.model.takes_of(CLIP)}
        yield Program((), self._prepare, (self.params, takes))
        with self._mesh():
            made = jax.eval_shape(self.model.prepare, self.params, takes)
            slots = self.window.slots(num_frames(plan))
            tokens = self.model.config.frame_tokens(*shape[1:])
            cache = jax.eval_shape(
                lambda: kv.init(self.model.config, 1, slots, tokens, self._stacked)
            )
        clip = jax.tree.map(lambda x: self._laid(x, (*[None] * (x.ndim - 2), "heads", None)), made)
        cache = jax.tree.map(lambda x: self._laid(x, sharding.STORED[x.ndim]), cache)
        ends = list(itertools.accumulate(block.frames for block in plan))

        def kind(i: int) -> Any:
            return plan[i], plan[i - 1].frames if i else 0, self._limit(ends[i], slots)

        for (block, before, limit), group in itertools.groupby(range(len(plan)), kind):
            fields = self.model.fields(before + block.frames)
            frame = {n: place((1, *fields[n])) for n in self.model.takes_of(FRAME)}
            more = len(block.sigmas) - 1
            draws = BlockDraws(
                place((1, block.frames, *shape)),
                place((1, more, block.frames, *shape)) if more else None,
                None,
            )
            clean = place((1, before, *shape)) if before else None
            start = place(()).update(dtype=jnp.int32)
            state = self.params, cache, Condition(clip, frame), draws, clean, start
            yield Program(tuple(group), self._step, (*state, block, limit, self.window))

    def _abstract(self, shape: Sequence[int], axes: tuple[str | None, ...] = ()) -> Any:
        return self._laid(jax.ShapeDtypeStruct(tuple(shape), jnp.float32), axes)

    def _laid(self, leaf: jax.ShapeDtypeStruct, axes: tuple[str | None, ...]) -> Any:
        if self.mesh is None:
            return leaf
        return leaf.update(sharding=NamedSharding(self.mesh, sharding.spec(axes)))

    def _prefill(
        self, cache: Caches, clip: Any, given: Clean, size: int, slots: int, window: Window
    ) -> tuple[Caches, Clean]:
        """Clean passes of all given blocks but the last, which shares one with the first noisy block."""
        last = (given[0].shape[1] - 1) // size * size
        for start in range(0, last, size):
            part = cut(given, start, start + size)
            cache = self._clean(cache, clip, part, start, slots, window)
        return cache, cut(given, last)

    def _clean(
        self, cache: Caches, clip: Any, x: Clean, start: int, slots: int, window: Window
    ) -> Caches:
        limit = self._limit(start + x[0].shape[1], slots)
        state = self.params, cache, Condition(clip, x[1]), x[0], jnp.int32(start)
        return self._run(self._context, *state, limit, window)

    def _asked(self, conditions: Conditions, start: int, frames: int, batch: int) -> Condition:
        """The conditions of frames from number `start` on. What is not said of frames is zero.

        Raises:
          InputError: something is said of fewer.
        """
        found = conditions(start) if callable(conditions) else conditions.cut(start)
        own = found.cut(0, frames).frame
        for name, x in own.items():
            if x.shape[1] != frames:
                raise InputError(
                    f"conditions: expected {name!r} of {frames} frames from number {start} on, found "
                    f"{x.shape[1]}"
                )
        shapes = self.model.fields(frames)
        return found._replace(
            frame={
                name: own[name] if name in own else jnp.zeros((batch, *shapes[name]))
                for name in self.model.takes_of(FRAME)
            }
        )

    def _limit(self, frames: int, slots: int) -> int:
        """Slots, of all, that a program reads when the video has so many frames. Where kernels skip what is
        not there yet, one program serves all blocks; elsewhere each part of the cache has a program."""
        with self._mesh():
            part = bucket(slots)
        return min(slots, -(-frames // part) * part)

    def _empty(self, shape: tuple[int, ...], slots: int) -> Caches:
        tokens = self.model.config.frame_tokens(*shape[-2:])
        devices = jax.local_devices()[:1] if self.mesh is None else list(self.mesh.devices.flat)
        needed = kv.size(self.model.config, shape[0], slots, tokens)
        room.check_memory(
            f"cache of {slots} latent frames",
            needed,
            "make a shorter video or a smaller batch, or give a window",
            devices,
        )
        return self._run(_empty, self.model.config, shape[0], slots, tokens, self._stacked)

    @property
    def _stacked(self) -> bool:
        return not isinstance(self.params["blocks"], tuple)

    def _run(self, program: Callable[..., Any], *arguments: Any) -> Any:
        with self._mesh():
            return program(*arguments)

    def _mesh(self) -> Any:
        return sharding.using(self.mesh)


_empty = jax.jit(kv.init, static_argnums=(0, 1, 2, 3, 4))

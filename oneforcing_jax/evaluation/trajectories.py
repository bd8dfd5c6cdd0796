"""Trajectories of a teacher, bidirectional or causal, and the report on their curvature."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from oneforcing_jax import flow
from oneforcing_jax.causal.plan import make_plan
from oneforcing_jax.data.store import Store
from oneforcing_jax.errors import InputError
from oneforcing_jax.evaluation import curvature
from oneforcing_jax.families import encoders as encoding
from oneforcing_jax.families.codec import pad_embeddings
from oneforcing_jax.generation import jobs, pretrained, samplers
from oneforcing_jax.generation.noise import sample_keys
from oneforcing_jax.generation.pretrained import Source
from oneforcing_jax.methods import causal_ode
from oneforcing_jax.models.condition import NEGATIVE, prompted
from oneforcing_jax.setup.ranges import Amount, Count, Positive, Seed, options
from oneforcing_jax.system.files import read_record, write_whole

# Text embeddings [s, d] of a clip, and real latents [f, c, y, x] where they come from a store.
Clip = tuple[np.ndarray, np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The options that change the numbers; the report holds them."""

    clips: Amount
    sampling_steps: Count
    guidance: float
    shift: Positive | None
    seed: Seed
    batch: Amount
    causal: bool


def clips(args: argparse.Namespace, source: Source) -> tuple[list[Clip], np.ndarray]:
    """The clips that trajectories belong to, and the negative prompt.

    Raises:
      MissingInput, InputError: no such files, or a causal model without real clips.
    """
    wide = source.config.text_len
    if args.store:
        store = Store.open(args.store)
        written = np.flatnonzero(store.done())[: args.clips]
        rows = [store.read(int(i), ["text", "latents"]) for i in written]
        found: list[Clip] = [(row["text"], row["latents"]) for row in rows]
        return found, store.negative_text()
    if args.causal:
        raise InputError(
            "--causal: expected --store with it, found --prompts: blocks are conditioned on real clips"
        )
    loaded = encoding.load(args.encoders or pretrained.find_encoders(args.checkpoint), wide)
    words = [prompt.embedded for prompt in jobs.read_prompts(args.prompts)][: args.clips]
    *texts, negative = np.asarray(
        pad_embeddings([loaded.text.encode(w) for w in tqdm(words, desc="prompts")] + [
            loaded.text.encode(loaded.negative)], wide)
    )  # fmt: skip
    return [(text, None) for text in texts], negative


def solver(
    source: Source, given: Sampling, params: Any, negative: np.ndarray, at: np.ndarray
) -> Callable[..., Any]:
    """A function of noise [b, f, c, y, x], texts and real clips: states [b, steps + 1, f, c, y, x]
    at noise levels `at`."""
    model = source.model
    null = model.null({NEGATIVE: jnp.asarray(negative)})
    if not given.causal:
        table = samplers.unipc(at)
        return lambda noise, text, _: samplers.sample(
            model, params, noise, prompted(text), null, table,
            guidance=given.guidance - 1, states=True,
        )  # fmt: skip
    plan = make_plan(
        source.frames, source.block_frames, (1000.0,), source.shift, source.first_frames
    )
    layout = tuple(block.frames for block in plan)

    @jax.jit
    def causal(noise: jax.Array, text: jax.Array, clean: jax.Array) -> jax.Array:
        return causal_ode.trajectory(
            model, params, clean, noise, prompted(text), null, layout, at,
            tuple(range(given.sampling_steps)), given.guidance - 1,
        )  # fmt: skip

    return causal


def times(given: Sampling, shift: float) -> np.ndarray:
    """Noise levels of the states."""
    if given.causal:
        return flow.grid(given.sampling_steps, shift)
    return samplers.wan_grid(given.sampling_steps, shift)


def measure(
    source: Source, given: Sampling, found: Sequence[Clip], negative: np.ndarray, done: int
) -> Iterator[dict[str, list[list[float]]]]:
    """Profiles of the clips from number `done` on, batch by batch, by kind."""
    at, c = times(given, source.shift), source.config
    solve = solver(source, given, source.params(), negative, at)
    shape = (source.frames, c.in_dim, source.rows, source.columns)
    for start in range(done, len(found), given.batch):
        chosen = found[start : start + given.batch]
        # The last batch is filled up, so that one program serves all.
        filled = [chosen[i % len(chosen)] for i in range(given.batch)]
        numbers = [start + i for i in range(given.batch)]
        keys = sample_keys([given.seed] * given.batch, numbers)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        text = jnp.asarray(np.stack([text for text, _ in filled]), jnp.float32)
        real = [latents for _, latents in filled if latents is not None]
        clean = jnp.asarray(np.stack(real), jnp.float32) if real else None
        states = np.asarray(solve(noise, text, clean))[: len(chosen)]
        views = {"latents": states, "differences": curvature.differences(states)}
        yield {kind: curvature.profile(view, at).tolist() for kind, view in views.items()}


def report(args: argparse.Namespace) -> None:
    """Measures what is missing, writes the report after each batch, and draws the plot."""
    given = options(Sampling, vars(args))
    source = pretrained.find(args.checkpoint, args.ema, None, args.shift)
    found, negative = clips(args, source)
    settings = dataclasses.asdict(given) | {
        "checkpoint": str(args.checkpoint), "shift": source.shift, "clips": len(found),
    }  # fmt: skip
    rows: dict[str, list[list[float]]] = {kind: [] for kind in curvature.KINDS}
    if args.out.exists():
        before = read_record(args.out)
        if before.get("settings") != settings:
            raise InputError(
                f"{args.out}: expected nothing or a report of {settings}, found one of "
                f"{before.get('settings')}; choose another --out, or delete it"
            )
        rows = before["profiles"]
    at = times(given, source.shift)
    done = len(rows["latents"])
    with tqdm(total=len(found), initial=done, desc="curvature", unit="clip") as bar:
        for more in measure(source, given, found, negative, done) if done < len(found) else ():
            rows = {kind: rows[kind] + more[kind] for kind in curvature.KINDS}
            summaries = {k: curvature.summary(np.array(rows[k]), at) for k in curvature.KINDS}
            content = {"settings": settings, **summaries, "profiles": rows}
            write_whole(args.out, (json.dumps(content) + "\n").encode())
            bar.update(len(more["latents"]))
    show(args.out, args.beside)


def show(out: Path, beside: Sequence[Path]) -> None:
    """Prints the figures of a report, and draws it and those beside it."""
    made = read_record(out)
    for kind in curvature.KINDS:
        share, ratio = made[kind]["high_share"], made[kind]["high_to_middle"]
        print(
            f"{kind}: {share['mean']:.1%} of the curvature at t >= {curvature.HIGH} "
            f"[{share['low']:.1%}, {share['high']:.1%}], {ratio['mean']:.3g} times that of the middle "
            f"[{ratio['low']:.3g}, {ratio['high']:.3g}]"
        )
    curves = {f"{out.stem}, {kind}": made[kind] for kind in curvature.KINDS}
    curves |= {other.stem: read_record(other)["latents"] for other in beside}
    curvature.plot(out.with_suffix(".png"), curves)

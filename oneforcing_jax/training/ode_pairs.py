"""A stage that solves the ODE of a causal teacher: trajectories on real clips, in a store (stage 2a).

It runs on the mesh of its config. `share` "i/n" makes every n-th trajectory from the i-th on: n commands in
one work directory make them together.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from oneforcing_jax import flow, randomness, sharding
from oneforcing_jax.command import share
from oneforcing_jax.data.store import NEGATIVE_TEXT, Store
from oneforcing_jax.errors import InputError
from oneforcing_jax.methods import causal_ode
from oneforcing_jax.methods.causal_ode import Ode
from oneforcing_jax.models import params as parameters
from oneforcing_jax.models.wan import WanDiT
from oneforcing_jax.ranges import Count
from oneforcing_jax.run import Run
from oneforcing_jax.stages import Kind, Stage
from oneforcing_jax.training import sources


@dataclasses.dataclass(frozen=True)
class Fields:
    """Fields of the stage.

    Attributes:
      source: the causal teacher, "STAGE:NET".
      data: store of the real clips.
      count: trajectories to make; clip i is number i of the store, from the first again at its end.
      batch: trajectories at once, over all devices.
      share: of them, "i/n".
    """

    source: str
    data: str
    count: Count
    batch: Count
    share: str = "0/1"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sections of a config."""

    ode: Ode


def make(run: Run, name: str, fields: Fields, workdir: Path) -> None:
    """Makes the trajectories that are not there yet."""
    source, ode = Store.open(workdir / fields.data), run.view(Config).ode
    negative, (shape, _) = source.read_shared(NEGATIVE_TEXT), source.fields["latents"]
    kept = {name: source.fields[name] for name in ("latents", "text")}
    rows = ((len(ode.kept) + 1, *shape), "float32")
    made_with = {"kept": list(ode.kept), "steps": ode.steps}
    store = Store.create(
        workdir / name / "store", fields.count, kept | {"trajectory": rows}, made_with
    )
    store.write_shared(NEGATIVE_TEXT, negative)
    first, parts = share(fields.share)
    mine, done = np.arange(first, fields.count, parts), store.done()
    missing = mine[~done[mine]]
    if not len(missing):
        return
    module, mesh = _teacher(run, fields), sharding.make_mesh(run.mesh)
    params = sources.load(run, workdir, fields.source, parameters.in_use(module, mesh))
    solve = _solver(run, ode, module, negative)
    noise = _noise(run, name, shape)
    place = functools.partial(jax.device_put, device=sharding.named(mesh, ("batch",)))
    with (
        jax.set_mesh(mesh),
        tqdm(total=len(mine), initial=len(mine) - len(missing), desc=name, unit="clip") as bar,
    ):
        for start in range(0, len(missing), fields.batch):
            chosen = missing[start : start + fields.batch]
            # The last batch is filled up, so that one program serves all.
            filled = np.resize(chosen, fields.batch)
            clips = [source.read(int(i) % len(source)) for i in filled]
            clean, text = (
                place(np.stack([clip[k] for clip in clips])) for k in ("latents", "text")
            )
            solved = np.asarray(solve(params, clean, place(noise(filled)), text))
            for i, clip, row in zip(chosen, clips, solved, strict=False):
                store.write(int(i), {k: clip[k] for k in kept} | {"trajectory": row})
            bar.update(len(chosen))


def _teacher(run: Run, fields: Fields) -> WanDiT:
    module = sources.network(run, fields.source).module
    if not isinstance(module, WanDiT):
        raise InputError(
            f"config: expected a transformer as source of ODE pairs, found "
            f"{fields.source!r}; name another network"
        )
    return module


def _solver(run: Run, ode: Ode, module: WanDiT, negative: np.ndarray) -> Callable[..., jax.Array]:
    sigmas, layout = flow.grid(ode.steps, run.shift), run.layout

    @jax.jit
    def solve(params: Any, clean: jax.Array, noise: jax.Array, text: jax.Array) -> jax.Array:
        return causal_ode.trajectory(
            module, params, clean, noise, text, jnp.asarray(negative),
            layout, sigmas, ode.kept, ode.guidance,
        )  # fmt: skip

    return solve


def _noise(run: Run, name: str, shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """Noise [b, f, c, y, x] that belongs to the numbers of trajectories."""
    key = randomness.key(run.seed, name, "noise")

    @jax.jit
    def drawn(numbers: jax.Array) -> jax.Array:
        return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))(numbers)

    return lambda numbers: np.asarray(drawn(jnp.asarray(numbers)))


def prepare(run: Run, name: str, fields: Fields) -> Stage:
    """Checks the stage."""
    run.view(Config)
    module, mesh = _teacher(run, fields), sharding.make_mesh(run.mesh)
    parts = share(fields.share)
    sharding.check("a batch", fields.batch, "batch", mesh)
    sharding.check("attention heads", module.config.num_heads, "whole_heads", mesh)

    def check(workdir: Path) -> None:
        if not (workdir / name / "store").is_dir():
            like = parameters.in_use(module, mesh)
            sources.check_made(run, name, workdir, fields.source, like)

    return Stage(name, functools.partial(make, run, name, fields), check, share=parts)


KIND = Kind(Fields, lambda fields: (Config,), prepare)

"""A stage that solves the ODE of a causal teacher: trajectories on real clips, in a store (stage 2a).

It runs on the mesh of its config, over all processes, each of which reads and writes the trajectories that
its devices hold. `share` "i/n" makes every n-th trajectory from the i-th on: n commands in one work directory
make them together.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from tqdm import tqdm

from oneforcing_jax import flow, methods, sharding
from oneforcing_jax.data.store import META, NEGATIVE_TEXT, Store
from oneforcing_jax.errors import InputError
from oneforcing_jax.methods import causal_ode
from oneforcing_jax.methods.causal_ode import Ode
from oneforcing_jax.models.condition import NEGATIVE, Condition
from oneforcing_jax.models.model import Model
from oneforcing_jax.setup.ranges import Count
from oneforcing_jax.setup.run import Run
from oneforcing_jax.setup.stages import Kind, MadeFrom, Stage, results
from oneforcing_jax.system import places, processes
from oneforcing_jax.system.command import share
from oneforcing_jax.training import randomness, sources


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
    source, ode = Store.open(places.within(workdir, fields.data)), run.view(Config).ode
    negative, (shape, _) = source.negative_text(), source.fields["latents"]
    model, mesh = _teacher(run, fields), sharding.make_mesh(run.mesh)
    kept = {name: source.fields[name] for name in ("latents", *model.takes)}
    trajectory = ((len(ode.kept) + 1, *shape), "float32")
    begin = functools.partial(
        Store.create,
        workdir / name / "store",
        fields.count,
        kept | {"trajectory": trajectory},
        {"kept": list(ode.kept), "steps": ode.steps},
    )
    with processes.first(f"the store of {name!r}") as mine:
        if mine:
            begin().write_shared(NEGATIVE_TEXT, negative)
    store = begin()
    first, parts = share(fields.share)
    numbers, done = np.arange(first, fields.count, parts), store.done()
    missing = numbers[~done[numbers]]
    # None writes before all have seen what there is.
    processes.same(f"missing trajectories of {name!r}", hashlib.sha256(missing).hexdigest()[:16])
    if not len(missing):
        return
    params = sources.load(run, workdir, fields.source, model.in_use(mesh))
    rows = sharding.named(mesh, ("batch",))
    solve = _solver(run, ode, model, model.null({NEGATIVE: negative}), rows)
    noise = _noise(run, name, shape)
    held = _held(rows, fields.batch)
    begun, written = time.perf_counter(), 0
    bar = tqdm(
        total=len(numbers), initial=len(numbers) - len(missing), desc=name, unit="clip",
        disable=not processes.is_first(),
    )  # fmt: skip
    with jax.set_mesh(mesh), bar:
        for start in range(0, len(missing), fields.batch):
            chosen = missing[start : start + fields.batch]
            # The last batch is filled up, so that one program serves all.
            filled = np.resize(chosen, fields.batch)
            clips = {row: source.read(int(filled[row]) % len(source)) for row in held}
            batch = {
                k: _placed({row: clip[k] for row, clip in clips.items()}, fields.batch, rows)
                for k in kept
            }
            noises = _placed(dict(zip(held, noise(filled[held]), strict=True)), fields.batch, rows)
            solved = solve(params, batch["latents"], noises, model.condition(batch))
            for row, found in _written(solved):
                if row < len(chosen):
                    clip = {k: clips[row][k] for k in kept}
                    store.write(int(chosen[row]), clip | {"trajectory": found})
                    written += 1
            bar.update(len(chosen))
    processes.say_rates(name, written, time.perf_counter() - begun, "clip")


def _rows(index: Any, count: int) -> range:
    """The rows of a batch that a part of it holds, by the index that a sharding gives the part."""
    return range(count)[index[0]]


def _held(rows: NamedSharding, count: int) -> list[int]:
    """The rows of a batch that this process's devices hold."""
    parts = rows.addressable_devices_indices_map((count,)).values()
    return sorted({row for part in parts for row in _rows(part, count)})


def _placed(values: Mapping[int, np.ndarray], count: int, rows: NamedSharding) -> jax.Array:
    """A batch from the rows that this process's devices hold."""
    shape = next(iter(values.values())).shape
    return jax.make_array_from_callback(
        (count, *shape), rows, lambda at: np.stack([values[row] for row in _rows(at, count)])
    )


def _written(batch: jax.Array) -> Iterator[tuple[int, np.ndarray]]:
    """The rows of a batch, by number, that this process is to write: of all copies one is written."""
    for shard in batch.addressable_shards:
        if shard.replica_id == 0:
            yield from zip(_rows(shard.index, len(batch)), np.asarray(shard.data), strict=True)


def _teacher(run: Run, fields: Fields) -> Model:
    network = sources.network(run, fields.source)
    if network.backbone:
        raise InputError(
            f"config: expected a transformer as source of ODE pairs, found "
            f"{fields.source!r}; name another network"
        )
    return network.model


def _solver(
    run: Run, ode: Ode, model: Model, null: Condition, rows: NamedSharding
) -> Callable[..., jax.Array]:
    sigmas, layout = flow.grid(ode.steps, run.shift), run.layout

    @functools.partial(jax.jit, out_shardings=rows)
    def solve(params: Any, clean: jax.Array, noise: jax.Array, given: Condition) -> jax.Array:
        return causal_ode.trajectory(
            model, params, clean, noise, given, jax.tree.map(jnp.asarray, null),
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
    model, mesh = _teacher(run, fields), sharding.make_mesh(run.mesh)
    parts = share(fields.share)
    sharding.check("a batch", fields.batch, "batch", mesh)
    sharding.check("attention heads", model.config.num_heads, "whole_heads", mesh)

    def check(workdir: Path) -> None:
        data = places.within(workdir, fields.data)
        if (data / META).is_file():
            Store.open(data).check_shapes(methods.sample_fields(run, model))
        if not (workdir / name / "store").is_dir():
            sources.check_made(run, name, workdir, fields.source, model.in_use(mesh))

    work, own = functools.partial(make, run, name, fields), f"stages.{name}"
    unread = (*methods.STEPS, "fps")
    made_from = MadeFrom(
        results(run, (Config,), unread) | {f"{own}.count": fields.count},
        networks={f"{own}.source": fields.source},
        stores={f"{own}.data": fields.data},
    )
    return Stage(name, work, check, parts, made_from)


KIND = Kind(Fields, lambda fields: (Config,), prepare)

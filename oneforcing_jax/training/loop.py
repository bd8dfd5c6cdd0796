"""The only training loop; the method is data to it."""

from __future__ import annotations

import contextlib
import hashlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from oneforcing_jax import build, checkpoint
from oneforcing_jax.causal import flops
from oneforcing_jax.command import Stopped
from oneforcing_jax.data.pipeline import batches
from oneforcing_jax.data.store import META, NEGATIVE_TEXT, Store
from oneforcing_jax.models.critic import Critic
from oneforcing_jax.training.interrupt import Interrupt
from oneforcing_jax.training.metrics import Log, Work
from oneforcing_jax.training.samples import Samples
from oneforcing_jax.training.steps import Trainer

CHECKPOINTS = "checkpoints"


def run(config: ConfigDict, name: str, workdir: Path) -> None:
    """Runs one training stage to its end, from its last checkpoint if it has one.

    Raises:
      Stopped: SIGTERM or SIGINT came; the state is saved.
      FloatingPointError: a metric is not finite; nothing was saved since.
      ValueError, OSError: data or checkpoints that do not fit, or that cannot be read or written.
    """
    stage, folder = config.stages[name], workdir / name
    trainer = build.trainer(config, stage)
    store = Store.open(workdir / stage.data)
    store.require_complete()
    fields = build.data_fields(config, stage)
    for field, shape in fields.items():
        store.check_fields([field])
        if store.fields[field][0] != shape:
            raise ValueError(
                f"{store.path}: expected {field} {list(shape)} as in the config, found "
                f"{list(store.fields[field][0])}; change the config, or make the store again"
            )
    with (
        jax.set_mesh(trainer.mesh),
        checkpoint.manager(folder / CHECKPOINTS, stage.keep, **stage.best) as manager,
    ):
        if (manager.latest_step() or 0) >= stage.iterations:
            return
        described = hashlib.sha256((store.path / META).read_bytes()).hexdigest()[:16]
        checkpoint.claim(
            manager,
            {"method": stage.method, "seed": config.seed, "batch": stage.batch, "data": described},
        )
        abstract, abstract_frozen = trainer.abstract()
        frozen = {
            net: _initial(trainer, config, stage, net, abstract_frozen[net], workdir)
            for net in abstract_frozen
        }
        start, state, latest = checkpoint.restore(manager, abstract) or (0, None, {})
        if state is None:
            nets = abstract["params"]
            state = trainer.init_state(
                {net: _initial(trainer, config, stage, net, nets[net], workdir) for net in nets}
            )
        streams = _streams(trainer, store, list(fields), start)
        samples = (
            Samples(config, stage, store.path, folder, trainer.mesh)
            if stage.samples.every
            else None
        )
        work = Work(
            flops.tokens(config, stage), flops.updates(config, stage, trainer.method.trained)
        )
        log = Log(
            folder, name, start, stage.iterations, stage.log_every, latest, work, config.wandb
        )
        with log, _trace(folder, config.profile, log.check) as trace:
            try:
                _loop(trainer, stage, log, streams, manager, start, state, frozen, samples, trace)
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"{error}; {checkpoint.last(manager)}: lower the learning rate or the clipping norm, "
                    "and the same command continues from it"
                ) from None


def _streams(trainer: Trainer, store: Store, fields: list[str], start: int) -> list[Any]:
    """Each update draws batches of its own; number i of a stream does not depend on where it began."""
    index, count = trainer.share
    negative = store.read_shared(NEGATIVE_TEXT)
    streams = [
        batches(
            store,
            trainer.batch,
            seed=trainer.seed + number,
            start=-(-start // update.every),
            process_index=index,
            process_count=count,
            fields=fields,
        )
        for number, update in enumerate(trainer.method.updates)
    ]
    return [(trainer.put(batch | {"negative": negative}) for batch in s) for s in streams]


def _loop(
    trainer: Trainer,
    stage: ConfigDict,
    log: Log,
    streams: list[Any],
    manager: Any,
    start: int,
    state: Any,
    frozen: Any,
    samples: Samples | None,
    trace: Callable[[int], None],
) -> None:
    steps, updates = trainer.steps(), trainer.method.updates
    with Interrupt() as interrupt:
        for iteration in range(start, stage.iterations):
            metrics: dict[str, Any] = {}
            for update, step, stream in zip(updates, steps, streams, strict=True):
                if iteration % update.every == 0:
                    state, new = step(state, frozen, next(stream), np.int32(iteration))
                    metrics |= {f"{update.net}/{key}": value for key, value in new.items()}
            if iteration == start and stage.best.metric not in {"", *log.latest, *metrics}:
                raise ValueError(
                    f"config: field 'best.metric': expected one of {sorted(log.latest | metrics)}, found "
                    f"{stage.best.metric!r}"
                )
            done = iteration + 1
            if samples and (done % stage.samples.every == 0 or done == stage.iterations):
                with log.aside():
                    metrics |= samples.make(done, _students(trainer, state))
            log.step(done, metrics)
            trace(done - start)
            asked = interrupt.asked(done)
            if asked or done % stage.checkpoint_every == 0 or done == stage.iterations:
                # The check waits for the devices, and keeps states that are not finite off the disk.
                checkpoint.save(manager, done, state, log.check())
            if asked:
                raise Stopped(
                    f"stopped by {signal.Signals(interrupt.number).name} after iteration {done}; "
                    f"{checkpoint.last(manager)}: the same command continues from it",
                    interrupt.number,
                )


def _students(trainer: Trainer, state: Any) -> dict[str, Any]:
    """The generator's parameters, and its average."""
    net = trainer.method.trained[0]
    nets = {"": state["params"][net]}
    return nets | ({"ema": state["ema"][net]} if trainer.ema.net == net else {})


@contextlib.contextmanager
def _trace(folder: Path, count: int, wait: Callable[[], Any]) -> Iterator[Callable[[int], None]]:
    """Profiles `count` iterations, from the second of this run on (the first compiles); 0: none."""
    running = False

    def step(done: int) -> None:
        nonlocal running
        if count and done == 1:
            wait()
            jax.profiler.start_trace(str(folder / "profile"))
            running = True
        elif running and done > count:
            stop()

    def stop() -> None:
        nonlocal running
        if running:
            running = False
            wait()
            jax.profiler.stop_trace()
            tqdm.write(f"profile in {folder / 'profile'}: tensorboard --logdir, or xprof")

    try:
        yield step
    finally:
        stop()


def _initial(
    trainer: Trainer, config: ConfigDict, stage: ConfigDict, net: str, abstract: Any, workdir: Path
) -> Any:
    """Parameters that a network begins with: "" random, or "STAGE:NET" or "DIRECTORY:NET"."""
    source = stage.init.get(net, "")
    if not source:
        return trainer.init_net(net)
    place, _, other = source.rpartition(":")
    folder = workdir / place / CHECKPOINTS if place in config.stages else Path(place)
    if isinstance(trainer.method.nets[net], Critic) and other != "critic":
        backbone = checkpoint.load_net(folder, other, abstract["model"])
        return trainer.init_net(net) | {"model": backbone}
    return checkpoint.load_net(folder, other, abstract)

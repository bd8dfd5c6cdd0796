"""The only training loop; the method is data to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from oneforcing_jax import build, checkpoint
from oneforcing_jax.data.pipeline import batches
from oneforcing_jax.data.store import NEGATIVE_TEXT, Store
from oneforcing_jax.metrics import Log
from oneforcing_jax.models.critic import Critic
from oneforcing_jax.steps import Trainer

CHECKPOINTS = "checkpoints"


def run(config: ConfigDict, name: str, workdir: Path) -> None:
    """Runs one training stage to its end, from its last checkpoint if it has one."""
    stage, folder = config.stages[name], workdir / name
    trainer = build.trainer(config, stage)
    store = Store.open(workdir / stage.data)
    store.require_complete()
    with (
        jax.set_mesh(trainer.mesh),
        checkpoint.manager(folder / CHECKPOINTS, stage.keep) as manager,
    ):
        if manager.latest_step() == stage.iterations:
            return
        abstract, abstract_frozen = trainer.abstract()
        frozen = {
            net: _initial(trainer, config, stage, net, abstract_frozen[net], workdir)
            for net in abstract_frozen
        }
        start, state = checkpoint.restore(manager, abstract) or (0, None)
        if state is None:
            nets = abstract["params"]
            state = trainer.init_state(
                {net: _initial(trainer, config, stage, net, nets[net], workdir) for net in nets}
            )
        _loop(trainer, stage, name, folder, store, manager, start, state, frozen)


def _loop(
    trainer: Trainer,
    stage: ConfigDict,
    name: str,
    folder: Path,
    store: Store,
    manager: Any,
    start: int,
    state: Any,
    frozen: Any,
) -> None:
    steps, updates = trainer.steps(), trainer.method.updates
    negative = store.read_shared(NEGATIVE_TEXT)
    # Each update draws batches of its own; batch number i of a stream does not depend on where it began.
    streams = [
        batches(
            store,
            stage.batch,
            seed=trainer.seed + number,
            start=-(-start // update.every),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            fields=list(store.fields),
        )
        for number, update in enumerate(updates)
    ]
    with Log(folder, name, start, stage.iterations, stage.log_every) as log:
        for iteration in range(start, stage.iterations):
            metrics: dict[str, Any] = {}
            for update, step, stream in zip(updates, steps, streams, strict=True):
                if iteration % update.every == 0:
                    batch = trainer.put(next(stream) | {"negative": negative})
                    state, new = step(state, frozen, batch, np.int32(iteration))
                    metrics |= {f"{update.net}/{key}": value for key, value in new.items()}
            log.step(iteration, metrics)
            done = iteration + 1
            if done % stage.checkpoint_every == 0 or done == stage.iterations:
                checkpoint.save(manager, done, state)


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

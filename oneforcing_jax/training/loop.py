"""The only training loop; the method is data to it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from oneforcing_jax.data.pipeline import batches
from oneforcing_jax.data.store import META, Store
from oneforcing_jax.errors import InputError, NotFinite
from oneforcing_jax.models import trees
from oneforcing_jax.models.condition import NEGATIVE
from oneforcing_jax.models.products.low_rank import LowRank
from oneforcing_jax.models.trees import Params
from oneforcing_jax.setup.ranges import Count, Natural
from oneforcing_jax.setup.run import Run
from oneforcing_jax.system import checkpoint, places, processes, room, saved
from oneforcing_jax.system.bases import Base
from oneforcing_jax.system.command import Stopped
from oneforcing_jax.system.files import write_whole
from oneforcing_jax.training import randomness, sources
from oneforcing_jax.training.interrupt import Interrupt
from oneforcing_jax.training.metrics import Cost, Log
from oneforcing_jax.training.optim import Optimiser
from oneforcing_jax.training.samples import Samples, SampleSettings
from oneforcing_jax.training.steps import Ema, State, Trainer


@dataclasses.dataclass(frozen=True)
class Best:
    """Which checkpoint is kept beside the newest.

    Attributes:
      metric: of an update, such as "generator/loss", or of the samples, such as "samples/motion"; "": none
        is kept.
      mode: whether the least ("min") or the greatest ("max") is best.
    """

    metric: str = ""
    mode: str = "min"

    def __post_init__(self) -> None:
        if self.mode not in checkpoint.MODES:
            raise InputError(f"expected a mode among {checkpoint.MODES}, found {self.mode!r}")


@dataclasses.dataclass(frozen=True)
class Train:
    """Fields of a stage that trains.

    Attributes:
      method: a file of `oneforcing_jax/methods`, or the dotted path of a module.
      data: store of latents and prompt embeddings, inside the work directory, or an absolute path.
      iterations: to train.
      batch: clips of an iteration, over all devices; results depend on it.
      microbatch: how much of it goes through the networks at once, which costs memory; 0: all.
      offload_optimiser: whether optimiser states wait in the host's memory between steps.
      optimisers: of each trained network.
      ema: moving average of the network that makes videos.
      init: what each network starts from: "random", "STAGE:NET", or "DIRECTORY:NET" of checkpoints.
      low_rank: adapters of networks by name, which are then all that is trained of these.
      log_every: iterations from one line of metrics to the next.
      samples: sample videos, of raw weights and average.
      checkpoint_every: iterations from one checkpoint to the next.
      keep: the last checkpoints, so many.
      best: the checkpoint that is kept beside them.
    """

    method: str
    data: str
    iterations: Count
    batch: Count
    microbatch: Natural
    offload_optimiser: bool
    optimisers: Mapping[str, Optimiser]
    ema: Ema
    init: Mapping[str, str]
    log_every: Count
    samples: SampleSettings
    checkpoint_every: Count
    keep: Count
    best: Best
    low_rank: Mapping[str, LowRank] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.data:
            raise InputError("data: expected a store, found no name; name its folder")


def run(run: Run, name: str, stage: Train, trainer: Trainer, workdir: Path) -> None:
    """Runs one training stage to its end, from its last checkpoint if it has one.

    Raises:
      Stopped: SIGTERM or SIGINT came; the state is saved.
      NotFinite: a metric is not finite; nothing was saved since.
      InputError, OSError: data or checkpoints that do not fit, or that cannot be read or written.
    """
    folder = workdir / name
    store = _store(places.within(workdir, stage.data), trainer.method.fields)
    with (
        jax.set_mesh(trainer.mesh),
        checkpoint.manager(
            folder / checkpoint.FOLDER, stage.keep, stage.best.metric, stage.best.mode
        ) as manager,
    ):
        done = checkpoint.latest(manager) or 0
        processes.same(f"newest checkpoint of {name!r}", done)
        if done >= stage.iterations:
            return
        room.check_disk(f"a checkpoint of {name!r}", room.size(trainer.abstract()[0]), folder)
        stands_on = {} if done else _bases(run, stage, trainer, workdir)
        checkpoint.claim(manager, identity(run, stage, workdir), stands_on)
        start, state, frozen, latest = _begin(run, stage, trainer, workdir, manager)
        if processes.is_first():
            # What was trained; the work directory's own says what was asked for last.
            write_whole(folder / checkpoint.CONFIG, run.record)
        samples = None
        if stage.samples.every:
            samples = Samples(run, name, stage.samples, trainer, store.path, folder)
        log = Log(
            folder,
            name,
            start,
            stage.iterations,
            stage.log_every,
            latest,
            _cost(run, trainer),
            run.wandb,
        )
        streams = _streams(trainer, store, start)
        traced = run.profile if jax.process_index() == run.profile_process else 0
        with log, _trace(log.folder, traced, log.check) as trace:
            try:
                _loop(trainer, stage, log, streams, manager, start, state, frozen, samples, trace)
            except NotFinite as error:
                raise NotFinite(
                    f"{error}; {checkpoint.last(manager)}: lower the learning rate or the clipping norm, "
                    "and the same command continues from it"
                ) from None


def identity(run: Run, stage: Train, workdir: Path) -> dict[str, Any]:
    """What must not change when the stage is continued; its data as far as they are there."""
    found = {"method": stage.method, "seed": run.seed, "batch": stage.batch}
    file = places.within(workdir, stage.data) / META
    if file.is_file():
        found["data"] = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return found


def _store(path: Path, fields: Mapping[str, tuple[int, ...]]) -> Store:
    """The store of a stage's data, whole and with the fields that its method reads."""
    from oneforcing_jax.data import colour  # needs PyAV: see `Samples`

    store = Store.open(path)
    store.require_complete()
    if not colour.is_current(store.attributes) and processes.is_first():
        print(
            f"{path}: made by a version that read videos up to 2 of 255 darker; to make it anew, run "
            "tools/encode_videos.py with another --out"
        )
    store.check_shapes(fields)
    store.negative_text()  # before states are made, which takes long
    return store


def _begin(
    run: Run, stage: Train, trainer: Trainer, workdir: Path, manager: Any
) -> tuple[int, State, dict[str, Params], dict[str, float]]:
    """The iteration to go on from, the state there, what is frozen, and the last metrics."""
    abstract, frozen = trainer.abstract()
    whole, method = trainer.whole(abstract, frozen), trainer.method

    def initial(net: str, lent: Params | None = None) -> Params:
        return _initial(run, trainer, stage.init[net], net, whole[net], workdir, lent)

    params = {net: initial(net) for net in method.frozen}
    restored = checkpoint.restore(manager, abstract)
    own = [net for net in method.trained if net not in trainer.lent]
    if restored is None:
        params |= {net: initial(net) for net in own}
        lent = trainer.lend(trainer.frozen(params))
        params |= {net: initial(net, lent[net]) for net in trainer.lent}
        return 0, trainer.init_state(params), trainer.frozen(params), {}
    for net in set(trainer.partial).intersection(own):
        params[net] = saved.load_net(manager.directory, net, whole[net])
    start, state, latest = restored
    return start, state, trainer.frozen(params), latest


def _bases(run: Run, stage: Train, trainer: Trainer, workdir: Path) -> dict[str, Base]:
    """What the networks stand on of which the stage trains a part."""
    nets = trainer.method.nets
    return {
        net: sources.base(run, workdir, nets[net], net, stage.init[net]) for net in trainer.partial
    }


def _initial(
    run: Run,
    trainer: Trainer,
    source: str,
    net: str,
    abstract: Any,
    workdir: Path,
    lent: Params | None,
) -> Params:
    """Parameters that a network begins with; `lent` is its base, where that is in memory already."""
    if source == sources.RANDOM:
        return trainer.init_net(net)
    network = trainer.method.nets[net]
    if lent is None or sources.has_beside(run, workdir, network, source):
        found = sources.begin(run, workdir, network, net, source, abstract)
    else:
        found = lent
    known = set(trees.flat(found))
    if known == set(trees.flat(abstract)):
        return found
    return trees.merge(found, trainer.init_net(net, lambda path: path not in known))


def _cost(run: Run, trainer: Trainer) -> Cost:
    """Tokens of a batch's clips, and operations of one update of each network."""
    method = trainer.method
    config = method.nets[method.trained[0]].config
    tokens = config.frame_tokens(run.latents.rows, run.latents.columns) * run.latents.frames
    flops = {update.net: trainer.batch * update.work.model for update in method.updates}
    return Cost(trainer.batch * tokens, flops)


def _streams(trainer: Trainer, store: Store, start: int) -> list[Iterator[Any]]:
    """Each update draws batches of its own; number i of a stream does not depend on where it began."""
    index, count = trainer.share
    negative = store.negative_text()
    streams = [
        batches(
            store,
            trainer.batch,
            seed=randomness.number(trainer.seed, trainer.stage, update.net, "data"),
            start=-(-start // update.every),
            process_index=index,
            process_count=count,
            fields=list(trainer.method.fields),
        )
        for update in trainer.method.updates
    ]
    return [(trainer.put(batch | {NEGATIVE: negative}) for batch in s) for s in streams]


def _loop(
    trainer: Trainer,
    stage: Train,
    log: Log,
    streams: list[Iterator[Any]],
    manager: Any,
    start: int,
    state: State,
    frozen: Mapping[str, Params],
    samples: Samples | None,
    trace: Callable[[int], None],
) -> None:
    steps, updates = trainer.steps(), trainer.method.updates
    with Interrupt() as interrupt:
        for iteration in range(start, stage.iterations):
            metrics: dict[str, Any] = {}
            for update, step, stream in zip(updates, steps, streams, strict=True):
                if iteration % update.every == 0:
                    with log.on("data"):
                        batch = next(stream)
                    state, new = step(state, frozen, batch, np.int32(iteration))
                    metrics |= {f"{update.net}/{key}": value for key, value in new.items()}
            if iteration == start:
                _check_best(
                    stage.best, {*log.latest, *metrics, *(samples.names if samples else ())}
                )
            done = iteration + 1
            if samples and (done % stage.samples.every == 0 or done == stage.iterations):
                with log.aside():
                    metrics |= samples.make(done, trainer.sampled(state, frozen))
            log.step(done, metrics)
            trace(done - start)
            with log.on("waiting"):
                asked = interrupt.asked(done)
            if asked or done % stage.checkpoint_every == 0 or done == stage.iterations:
                # The check waits for the devices, and keeps states that are not finite off the disk.
                latest = log.check()
                with log.on("saving"):
                    checkpoint.save(manager, done, state, latest)
            if asked:
                raise Stopped(
                    f"stopped by {signal.Signals(interrupt.number).name} after iteration {done}; "
                    f"{checkpoint.last(manager)}: the same command continues from it",
                    interrupt.number,
                )


def _check_best(best: Best, known: set[str]) -> None:
    if best.metric not in {"", *known}:
        raise InputError(
            f"config: field 'best.metric': expected one of {sorted(known)}, found {best.metric!r}"
        )


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

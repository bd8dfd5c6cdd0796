"""Runs the stages of a config, in order.

    python -m oneforcing_jax.main --config=configs/toy.py --workdir=runs/toy

Any field can be overridden: --config.stages.teacher.iterations=100. The same command continues a run
that was interrupted; SIGTERM and Ctrl-C save first. On several hosts, run it on each with --distributed,
or with --coordinator, --process_id and --process_count where the cluster does not say them itself
(docs/launch). A stage that was made from other fields or inputs than are asked for is refused; --redo=STAGE
makes it anew, and keeps the old folder (docs/training.md). Exit code 75 says that a host was lost: start the
command again, with the hosts that there are.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from tqdm import tqdm

from oneforcing_jax.errors import InputError
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup import parts, presets, stages
from oneforcing_jax.setup.pace import Pace
from oneforcing_jax.setup.run import Run
from oneforcing_jax.setup.stages import Stage
from oneforcing_jax.system import checkpoint, lock, places, processes, room
from oneforcing_jax.system.command import Help, any_path
from oneforcing_jax.system.files import write_whole
from oneforcing_jax.targets import forecast, topology
from oneforcing_jax.training import lineage, tiny


def main(arguments: Sequence[str] | None = None, prog: str = "oneforcing_jax.main") -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s --config=FILE --workdir=PLACE [--config.FIELD=VALUE ...] [options]",
        description=__doc__.split("\n")[0],
        epilog="--config.FIELD=VALUE overrides a field: --config.stages.teacher.iterations=100.\n"
        "configs/base.py lists all fields; --dry_run prints those of a config with their values.",
        formatter_class=Help,
    )
    parser.add_argument(
        "--config",
        required=True,
        help="a Python file with get_config(), or the name of one of ours: toy",
    )
    parser.add_argument(
        "--workdir", required=True, type=any_path, help="where checkpoints, logs and results go"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="check and print the config, run nothing"
    )
    parser.add_argument(
        "--preset", help=f"fields for a machine: {', '.join(presets.PRESETS)}; see docs/scaling.md"
    )
    parser.add_argument(
        "--target",
        metavar="TARGET",
        help="with --dry_run: compile the training stages ahead for it, such as tpu:v5p:2x2x4 or gpu:h200:8, "
        "and say what they cost",
    )
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="the smallest networks, two iterations of each training stage on noise: does it run?",
    )
    parser.add_argument(
        "--profile", type=int, metavar="N", help="trace N iterations of each training stage"
    )
    parser.add_argument(
        "--profile_process", type=int, metavar="I", help="the process that is traced; default 0"
    )
    parser.add_argument(
        "--redo",
        action="append",
        default=[],
        metavar="STAGE",
        help="make a stage anew, and keep its old folder as STAGE.old-1; of several, commas are between them",
    )
    parts.add_option(parser)
    processes.add_options(parser)
    known, overrides = parser.parse_known_args(arguments)
    with processes.ending("the same command continues from the last checkpoint", known.workdir):
        if known.preset is not None:
            overrides = [*presets.overrides(known.preset), *overrides]
        for name in ("profile", "profile_process"):
            if (value := getattr(known, name)) is not None:
                overrides.append(f"{configs.PREFIX}{name}={value}")
        if known.target is not None:
            plan_on(known, overrides)
            return
        room.keep_freed_memory()
        processes.join(known)
        redo = [name.strip() for given in known.redo for name in given.split(",")]
        run(known.config, known.workdir, overrides, known.dry_run, known.tiny, redo)


def plan_on(known: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Prints a config, and what its training stages cost on the target that was asked for.

    Raises:
      InputError: a target without a dry run, or one that there is not.
      MissingPackage: its compiler is not installed.
    """
    if not known.dry_run:
        raise InputError(
            f"command line: expected --dry_run with --target, found --target={known.target} alone; a run "
            "takes the devices of its machine"
        )
    topology.prepare(known.target)
    config = configs.load(known.config, overrides, tiny.shrink if known.tiny else None)
    run = Run.of(config)
    print(config)
    for made in forecast.train(run, forecast.stages(run), topology.find(known.target)):
        print(forecast.table(made))


def run(
    path: str | Path,
    workdir: Path,
    overrides: Sequence[str] = (),
    dry_run: bool = False,
    shrunk: bool = False,
    redo: Sequence[str] = (),
) -> None:
    """Loads a config, checks all of it, and runs its stages, of which those in `redo` are made anew."""
    config = configs.load(path, overrides, tiny.shrink if shrunk else None)
    described = Run.of(config)
    prepared = stages.prepare(described)
    if described.profile_process >= jax.process_count():
        raise InputError(
            f"config: field 'profile_process': expected one of {jax.process_count()} processes, from 0, "
            f"found {described.profile_process}"
        )
    asked = " ".join([described.text, *redo]).encode()
    processes.same("config", hashlib.sha256(asked).hexdigest()[:16])
    if dry_run:
        print(config)
        return
    places.make(workdir)
    mine = jax.process_index() == 0
    with lock.held(workdir, [s.share for s in prepared]) if mine else contextlib.nullcontext():
        anew = lineage.refuse(described, prepared, workdir, redo)
        # Nothing is renamed before all have seen what there is.
        processes.same("stages to make anew", anew)
        with processes.first("what is made anew") as mine:
            if mine:
                lineage.put_aside(workdir, anew)
        for stage in prepared:
            stage.check(workdir)
        with processes.first("the work directory") as mine:
            if mine and shrunk:
                tiny.write_data(described, workdir)
            _start(workdir, described.record, prepared)
        pace = Pace(described.seconds, described.run)
        for stage in prepared:
            began = time.monotonic()
            with processes.first(f"the record of {stage.name!r}") as mine:
                if mine:
                    lineage.begin(described, stage, workdir)
            stage.work(workdir)
            processes.exchange(None, f"the end of {stage.name!r}")
            if processes.is_first():
                took = time.monotonic() - began
                said = pace.ended(stage.name, took) + _picture(workdir / stage.name)
                if took >= 1:  # otherwise it was done before
                    tqdm.write(said, file=sys.stderr)
        if processes.is_first():
            lineage.finish(workdir)


def _picture(folder: Path) -> str:
    """Where the picture is that a stage made, if it made one."""
    file = folder / stages.PICTURE
    return "" if places.is_url(file) or not file.exists() else f"; see {file.absolute().as_uri()}"


def _start(workdir: Path, config: bytes, prepared: Sequence[Stage]) -> None:
    """What lies in a work directory before the first stage."""
    for stage in prepared:
        places.make(workdir / stage.name)
    # Orbax and TensorBoard log through absl; what matters of it is raised.
    logging.getLogger("absl").setLevel(logging.ERROR)
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(places.absolute(workdir / "compiled")))
        if places.is_url(workdir):  # XLA's own caches would be folders here that are named like it
            jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    if processes.is_first():
        write_whole(workdir / checkpoint.CONFIG, config)


if __name__ == "__main__":
    main()

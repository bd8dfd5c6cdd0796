"""Runs the stages of a config, in order.

    python -m oneforcing_jax.main --config=configs/toy.py --workdir=runs/toy

Any field can be overridden: --config.stages.teacher.iterations=100. The same command continues a run
that was interrupted; SIGTERM and Ctrl-C save first. On several hosts, run it on each with --distributed,
or with --coordinator, --process_id and --process_count where the cluster does not say them itself.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from oneforcing_jax import build, presets
from oneforcing_jax import config as configs
from oneforcing_jax.command import ending
from oneforcing_jax.files import write_whole
from oneforcing_jax.targets import forecast as plan
from oneforcing_jax.targets import topology
from oneforcing_jax.training import tiny


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="oneforcing_jax.main", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--config", required=True, help="a Python file with get_config(), see configs/"
    )
    parser.add_argument(
        "--workdir", required=True, type=Path, help="where checkpoints, logs and results go"
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
        "--distributed", action="store_true", help="one of several processes, found by the cluster"
    )
    parser.add_argument("--coordinator", help="ADDRESS:PORT of process 0, where it must be said")
    parser.add_argument("--process_id", type=int, help="with --coordinator: this process, from 0")
    parser.add_argument("--process_count", type=int, help="with --coordinator: how many there are")
    known, overrides = parser.parse_known_args(arguments)
    with ending("the same command continues from the last checkpoint"):
        if known.preset is not None:
            overrides = [*presets.overrides(known.preset), *overrides]
        if known.profile is not None:
            overrides.append(f"{configs.PREFIX}profile={known.profile}")
        if known.target:
            plan_on(known, overrides)
            return
        _join(known)
        run(known.config, known.workdir, overrides, known.dry_run, known.tiny)


def plan_on(known: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Prints a config, and what its training stages cost on the target that was asked for.

    Raises:
      ValueError: a target without a dry run, or one that there is not.
      ImportError: its compiler is not installed.
    """
    if not known.dry_run:
        raise ValueError(
            f"command line: expected --dry_run with --target, found --target={known.target} alone; a run "
            "takes the devices of its machine"
        )
    topology.prepare(known.target)
    config = configs.load(known.config, overrides, tiny.shrink if known.tiny else None)
    print(config)
    for made in plan.train(config, plan.stages(config), topology.find(known.target)):
        print(plan.table(made))


def _join(known: argparse.Namespace) -> None:
    """Joins the other processes, if there are any.

    Raises:
      ValueError: flags of which one needs another, or processes that do not find each other.
    """
    said = (known.coordinator, known.process_id, known.process_count)
    if not known.distributed and said == (None, None, None):
        return
    if said.count(None) not in (0, 3):
        raise ValueError(
            "command line: expected --coordinator, --process_id and --process_count together, found "
            f"{said}; give all, or --distributed alone"
        )
    try:
        jax.distributed.initialize(*said[:1], num_processes=said[2], process_id=said[1])
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"distributed: {str(error).splitlines()[0]}") from None


def run(
    path: str | Path,
    workdir: Path,
    overrides: Sequence[str] = (),
    dry_run: bool = False,
    shrunk: bool = False,
) -> None:
    """Loads a config and runs its stages."""
    config = configs.load(path, overrides, tiny.shrink if shrunk else None)
    kinds = _kinds()
    for name in config.run:
        if name not in config.stages:
            known = list(config.stages)
            raise ValueError(f"config: field 'run': expected stages among {known}, found {name!r}")
        stage = config.stages[name]
        if stage.kind not in kinds:
            raise ValueError(
                f"config: stage {name!r}: expected a kind among {sorted(kinds)}, found {stage.kind!r}"
            )
        if stage.kind == "train":
            build.trainer(config, stage).abstract()
        elif jax.process_count() > 1:
            raise ValueError(
                f"config: stage {name!r} of kind {stage.kind!r}: expected stages of kind 'train' among "
                f"several processes, found {jax.process_count()}; run it first, in one, and set `run`"
            )
    if dry_run:
        print(config)
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with _alone(workdir):
        if shrunk:
            tiny.write_data(config, workdir)
        _run_stages(config, workdir)


def _run_stages(config: ConfigDict, workdir: Path) -> None:
    for name in config.run:
        (workdir / name).mkdir(exist_ok=True)
    keep_freed_memory()
    # Orbax and TensorBoard log through absl; what matters of it is raised.
    logging.getLogger("absl").setLevel(logging.ERROR)
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str((workdir / "compiled").absolute()))
    if jax.process_index() == 0:
        write_whole(workdir / "config.json", config.to_json(indent=1).encode())
    for name in config.run:
        _kinds()[config.stages[name].kind](config, name, workdir)


@contextlib.contextmanager
def _alone(workdir: Path) -> Iterator[None]:
    """Keeps other runs out of a work directory until this one ends, however it ends.

    Raises:
      ValueError: another run is in it.
    """
    if jax.process_index() != 0:
        yield
        return
    with (workdir / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"work directory {workdir}: expected no other run in it, found process {file.read()}; wait "
                "for it to end, or use another directory"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed, on CPU: each step would fault the same pages in again, which
    takes about a quarter of a small model's step."""
    if jax.default_backend() == "cpu" and sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            m_trim_threshold, m_top_pad, m_mmap_max, m_arena_max = -1, -2, -4, -8
            libc.mallopt(m_mmap_max, 0)
            libc.mallopt(m_trim_threshold, 2**31 - 1)
            libc.mallopt(m_top_pad, 2**28)
            libc.mallopt(m_arena_max, 1)


def _kinds() -> dict:
    from oneforcing_jax.toy import chain
    from oneforcing_jax.training import loop as train

    return {"train": train.run, **chain.STAGES}


if __name__ == "__main__":
    main()

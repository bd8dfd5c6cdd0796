"""Runs the stages of a config, in order.

    python -m oneforcing_jax.main --config=configs/toy.py --workdir=runs/toy

Any field can be overridden: --config.stages.teacher.iterations=100. The same command continues a run
that was interrupted.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from oneforcing_jax import build
from oneforcing_jax import config as configs
from oneforcing_jax.data.files import write_whole


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; errors of the user's are one line and exit code 2."""
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
    known, overrides = parser.parse_known_args(arguments)
    try:
        run(known.config, known.workdir, overrides, known.dry_run)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues from the last checkpoint")


def run(
    path: str | Path, workdir: Path, overrides: Sequence[str] = (), dry_run: bool = False
) -> None:
    """Loads a config and runs its stages."""
    config = configs.load(path, overrides)
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
    if dry_run:
        print(config)
        return
    for name in config.run:
        (workdir / name).mkdir(parents=True, exist_ok=True)
    _keep_freed_memory()
    # Orbax and TensorBoard log through absl; what matters of it is raised.
    logging.getLogger("absl").setLevel(logging.ERROR)
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str((workdir / "compiled").absolute()))
    write_whole(workdir / "config.json", config.to_json(indent=1).encode())
    for name in config.run:
        kinds[config.stages[name].kind](config, name, workdir)


def _keep_freed_memory() -> None:
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
    from oneforcing_jax import train
    from oneforcing_jax.toy import chain

    return {"train": train.run, **chain.STAGES}


if __name__ == "__main__":
    main()

"""What tools/fuzz.py tries bad input on: a small run, its encoders, weights, videos, store and database, and
the commands."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import fuzz_evaluation
import jax
import lmdb
import numpy as np

from oneforcing_jax import generate, main, methods
from oneforcing_jax.commands import check, convert, encode, export, import_lmdb, plan
from oneforcing_jax.data.video import write_video
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup.run import Run
from oneforcing_jax.toy import codec, encoders, text
from oneforcing_jax.training import tiny

ROOT = Path(__file__).resolve().parents[1]
NOISE = ROOT / "configs" / "noise.py"
STAGE = "one_forcing"
WORDS = "a red blue square circle moves left"
LATENTS, TEXT = (2, 2, 4, 4), (8, 8)  # of the run: [f, c, y, x], [s, d]


class Case(NamedTuple):
    """A command, whether it must be refused, and whether what was read afterwards is as it was."""

    command: str
    arguments: list[str]
    wrong: bool = False
    same: Callable[[], bool] | None = None


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "main": main.main,
    "generate": generate.main,
    "check": check.main,
    "convert_wan": convert.main,
    "encode_videos": encode.main,
    "export_torch": export.main,
    "import_lmdb": import_lmdb.main,
    "plan": plan.main,
    **fuzz_evaluation.COMMANDS,
}


def run(case: Case) -> None:
    """Runs a case's command in this process."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    COMMANDS[case.command](case.arguments)


def keep_programs(folder: Path) -> None:
    """Everything runs on CPU, and compiled programs are kept in a folder."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def make(folder: Path) -> None:
    """A run of a few iterations, its encoders, its exports for PyTorch, converted weights, and videos."""
    described = Run.of(configs.load(NOISE))
    store = tiny.write_noise(folder / "run" / "noise", methods.make(STAGE, described).fields, 4)
    iterations = f"--config.stages.{STAGE}.iterations=4"
    main.main([f"--config={NOISE}", f"--workdir={folder / 'run'}", iterations])
    shutil.copytree(store.path, folder / "store")
    frames = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    (folder / "encoders").mkdir()
    words = text.TextEncoder.train([WORDS], dim=TEXT[1], length=TEXT[0])
    encoders.save(folder / "encoders", codec.fit(frames, channels=LATENTS[1]), words)
    for name in ("student.pt", "student.safetensors"):
        layout = "original" if name.endswith(".pt") else "diffusers"
        given = [
            f"--checkpoint={folder / 'run' / STAGE}",
            f"--out={folder / name}",
            "--num_heads=2",
        ]
        export.main([*given, f"--layout={layout}"])
    options = [f"--source={folder / 'student.pt'}", f"--out={folder / 'weights'}", "--num_heads=2"]
    convert.main(options)
    (folder / "videos").mkdir()
    for i in range(2):
        write_video(folder / "videos" / f"{i}.mp4", frames, 8.0)
    database(folder / "lmdb")
    fuzz_evaluation.make(folder / "evaluation")
    run(Case("generate", generation(folder, "--prompt=a red square")))
    shutil.rmtree(folder / "out")


def generation(given: Path, *more: str, out: str = "out") -> list[str]:
    base = {
        "--checkpoint": str(given / "run" / STAGE),
        "--encoders": str(given / "encoders"),
        "--out": str(given / out),
    }
    names = {option.split("=")[0] for option in more}
    return [*(f"{k}={v}" for k, v in base.items() if k not in names), *more]


def database(folder: Path, rows: int = 4) -> None:
    """An LMDB of latents and prompts."""
    with lmdb.open(str(folder), map_size=1 << 24) as made, made.begin(write=True) as put:
        put.put(b"latents_shape", " ".join(map(str, (rows, *LATENTS))).encode())
        for i in range(rows):
            put.put(f"latents_{i}_data".encode(), np.full(LATENTS, i, np.float16).tobytes())
            put.put(f"prompts_{i}_data".encode(), b"a red square")
    (folder / "lock.mdb").unlink()

"""What tools/kill_test.py kills: a config, command lines that do its stages' work, and what of it is whole.

The config is configs/noise.py with a small world and the stages that it lacks. Networks and clips are tiny,
so that a start takes seconds, and the work behind it about as long.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from oneforcing_jax import methods
from oneforcing_jax.data.store import META, Store
from oneforcing_jax.data.video import read_video
from oneforcing_jax.errors import InputError
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup.run import Run
from oneforcing_jax.system import checkpoint
from oneforcing_jax.toy.world import FPS, TINY
from oneforcing_jax.training import tiny
from oneforcing_jax.training.metrics import RATES, ROWS, read_rows

CONFIG = Path(__file__).resolve()
ROOT = CONFIG.parents[1]
NOISE = runpy.run_path(str(ROOT / "configs" / "noise.py"))
ITERATIONS = 60
# A folder with samples in it, and files.
STORE, VIDEOS = "store", "videos/*.mp4"
# Names of what is half written; of folders whose content has readers of its own or tells the time; of files
# that do.
HALF = ("*.tmp", "*.partial", "*.__lock", f"*{ocp.utils.TMP_DIR_SUFFIX}*", checkpoint.TRASH)
INNER = {"arrays", "pending", "compiled", "tensorboard", checkpoint.FOLDER}
CLOCKS = {"lock", ROWS}
# In names of what is whole: a checkpoint, which a newer one replaces, and the content of a video.
REPLACED, FRAMES = ": checkpoint ", ": frames of "


def get_config() -> Any:
    """The config."""
    c, train = NOISE["get_config"](), NOISE["BASE"]["train_stage"]
    c.fps = FPS
    c.world = dataclasses.asdict(TINY)
    c.bell_weighting = True
    c.ode = {"steps": 8, "kept": (0, 2, 4, 6), "guidance": 1.0}
    teacher = {name: c.stages.teacher[name] for name in ("optimisers", "init", "ema")}
    c.stages.world = {
        "kind": "oneforcing_jax.toy.stages.world",
        "count": 60,
        "codec_videos": 16,
        "judge_iterations": 20,
    }
    c.stages.teacher_forcing = train(
        "teacher_forcing", "noise", 8, 8, **teacher, checkpoint_every=3
    )
    source = {"source": "teacher_forcing:model", "data": "noise", "share": "0/1"}
    c.stages.ode_pairs = {"kind": "ode_pairs", "count": 120, "batch": 4, **source}
    return c


class Stage(NamedTuple):
    """What is killed.

    Attributes:
      before: stages of the config that are run beforehand, in the folder of which each work has a copy.
      command: does the work in such a folder, or continues it.
      progress: units of the work that are there.
    """

    before: tuple[str, ...]
    command: Callable[[Path], list[str]]
    progress: Callable[[Path], int]


def command(workdir: Path, *overrides: str) -> list[str]:
    """The command line of a run, with other values of fields."""
    main = [sys.executable, "-m", "oneforcing_jax.main", f"--config={CONFIG}"]
    return [*main, f"--workdir={workdir}", *(f"--config.{field}" for field in overrides)]


def environment(compiled: Path) -> dict[str, str]:
    """One device, and every compiled program kept, so that a start takes seconds."""
    return (
        {"JAX_PLATFORMS": "cpu"}
        | os.environ
        | {
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    )


@contextlib.contextmanager
def running(
    arguments: list[str], env: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone afterwards."""
    with (
        log.open("wb") as out,
        subprocess.Popen(arguments, env=env, cwd=ROOT, stdout=out, stderr=out) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def _made(*names: str) -> Callable[[Path], int]:
    """Counts samples of stores, and files."""

    def count(found: Path) -> int:
        if found.name != STORE:
            return 1
        with contextlib.suppress(InputError):  # it is being made
            return int(Store.open(found).done().sum())
        return 0

    return lambda out: sum(count(found) for name in names for found in out.glob(name))


def _run(name: str, *names: str, before: tuple[str, ...] = ()) -> Stage:
    """A stage of the config that makes samples or files."""
    return Stage(before, lambda out: command(out, f"run={name}"), _made(*names))


def _train(name: str) -> Stage:
    fields = f"run={name}", f"stages.{name}.iterations={ITERATIONS}"
    return Stage((), lambda out: command(out, *fields), lambda out: len(read_rows(out / name)))


def _options(**given: Any) -> list[str]:
    return [f"--{name}={value}" for name, value in given.items()]


def _encode(out: Path) -> list[str]:
    world, tool = out / "world", str(ROOT / "tools" / "encode_videos.py")
    videos = {"videos": world / "videos", "captions": world / "videos" / "captions.jsonl"}
    given = _options(**videos, checkpoint=world, out=out / "store", config=CONFIG)
    return [sys.executable, tool, *given]


def _generate(out: Path) -> list[str]:
    given = _options(
        checkpoint=out / "one_forcing", encoders=out / "world", prompts=out / "prompts.txt",
        out=out / "videos", samples=10, naming="number", batch=2, frames=8,
    )  # fmt: skip
    return [sys.executable, "-m", "oneforcing_jax.generate", *given, "--save_latents"]


STAGES = {
    "world": _run("world", f"world/{VIDEOS}", f"world/{STORE}"),
    "encoding": Stage(("world",), _encode, _made(STORE)),
    "ode_pairs": _run("ode_pairs", f"ode_pairs/{STORE}", before=("teacher_forcing",)),
    "teacher_forcing": _train("teacher_forcing"),
    "one_forcing": _train("one_forcing"),
    "teacher": _train("teacher"),
    "generation": Stage(("world", "one_forcing"), _generate, _made(VIDEOS)),
}


def make_store(folder: Path) -> None:
    """A store of noise in the shapes of the config."""
    run = Run.of(configs.load(CONFIG))
    tiny.write_noise(folder, methods.make("one_forcing", run).fields)


def make_data(folder: Path) -> None:
    """What no stage makes: a store of noise, and prompts."""
    make_store(folder / "noise")
    (folder / "prompts.txt").write_text("\n".join(TINY.captions()))


# What is whole in a folder.


def checkpoints(stage: Path) -> list[Path]:
    """Checkpoints of a stage that trains, the oldest first."""
    numbered = [p for p in (stage / checkpoint.FOLDER).glob("[0-9]*") if p.name.isdigit()]
    return sorted(numbered, key=lambda p: int(p.name))


def read(checkpoint: Path) -> dict[str, np.ndarray]:
    """All leaves of all items of a checkpoint."""
    leaves, here = {}, jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with ocp.StandardCheckpointer() as checkpointer:
        for item in sorted(p for p in checkpoint.iterdir() if "_" in p.name and p.is_dir()):
            stored = checkpointer.metadata(item).item_metadata
            # Where its arrays lay, other processes may have been.
            target = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
                getattr(stored, "tree", stored),
            )
            restored = checkpointer.restore(item, target)
            for path, leaf in jax.tree_util.tree_leaves_with_path(restored):
                leaves[item.name + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return leaves


def _digest(value: np.ndarray | bytes) -> str:
    if isinstance(value, np.ndarray):
        value = f"{value.dtype} {value.shape} ".encode() + value.tobytes()
    return hashlib.sha256(value).hexdigest()


def _trained(stage: Path) -> Iterator[tuple[str, str]]:
    """Checkpoints, and the metrics up to the newest; a start takes back those beyond it."""
    whole = checkpoints(stage)
    for path in whole:
        leaves = {name: _digest(leaf) for name, leaf in read(path).items()}
        yield f"checkpoint {path.name}", _digest(json.dumps(leaves).encode())
    newest = int(whole[-1].name) if whole else 0
    rows = [row for row in read_rows(stage) if row["iteration"] <= newest]
    for i, row in enumerate(rows):
        kept = {name: value for name, value in row.items() if not name.startswith(RATES)}
        yield f"row {i} of metrics", _digest(json.dumps(kept).encode())


def _samples(folder: Path) -> Iterator[tuple[str, str]]:
    """The samples of a store that are done."""
    store = Store.open(folder)
    for index in np.flatnonzero(store.done()).tolist():
        for name, value in store.read(index).items():
            yield f"sample {index} {name}", _digest(value)


def state(out: Path) -> dict[str, str]:
    """Digests of whatever is whole in a folder: checkpoints, metrics, samples, frames, other files."""
    found: dict[str, str] = {}
    for at, folders, files in os.walk(out):
        here = Path(at)
        try:
            inner = dict(_inner(here, files))
        except Exception as error:
            inner = {f"cannot be read: {str(error).splitlines()[0]}": ""}
        folders[:] = [name for name in folders if name not in INNER]
        found |= {f"{here.relative_to(out)}: {name}": value for name, value in inner.items()}
    return found


def _inner(here: Path, files: list[str]) -> Iterator[tuple[str, str]]:
    if (here / checkpoint.FOLDER).is_dir():
        yield from _trained(here)
    if (here / META).is_file() and (here / "arrays").is_dir():
        yield from _samples(here)
    for name in files:
        if not name.startswith(".") and name not in CLOCKS:
            yield name, _digest((here / name).read_bytes())
            if name.endswith(".mp4"):
                yield f"frames of {name}", _digest(read_video(here / name)[0])


def half(out: Path) -> set[str]:
    """Files and folders that somebody began to write."""
    return {
        os.path.join(at, name)
        for at, folders, files in os.walk(out)
        for name in (*folders, *files)
        if any(fnmatch(name, pattern) for pattern in HALF)
    }


def lost(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What was whole before, and is not there any more or not as it was, in words."""
    gone = [name for name in before if name not in after and REPLACED not in name]
    changed = [name for name in before if name in after and before[name] != after[name]]
    return [f"{name} is lost" for name in gone] + [f"{name} has changed" for name in changed]


def _replaced(state: dict[str, str]) -> set[str]:
    """The checkpoints that have newer ones beside them."""
    numbers = collections.defaultdict[str, list[int]](list)
    for name in state:
        folder, found, number = name.partition(REPLACED)
        if found:
            numbers[folder].append(int(number))
    return {f"{at}{REPLACED}{n}" for at, all_ in numbers.items() for n in all_ if n < max(all_)}


def differences(found: dict[str, str], end: dict[str, str], finished: bool = True) -> list[str]:
    """What is not as in the undisturbed work, in words. Of videos the frames count, and not the bytes."""
    passing = _replaced(found) | _replaced(end)
    if not finished:
        passing |= {name for name in found if REPLACED in name}
    more = [name for name in found if name not in end and name not in passing]
    missing = [name for name in end if name not in found and name not in passing and finished]
    other = [name for name in found if name in end and found[name] != end[name]]
    other = [name for name in other if FRAMES in name or not name.endswith(".mp4")]
    return [
        *(f"{name} is not in the undisturbed work" for name in more),
        *(f"{name} is missing" for name in missing),
        *(f"{name} differs from the undisturbed work" for name in other),
    ]


def other_bytes(found: dict[str, str], end: dict[str, str]) -> int:
    """How many videos have other bytes than in the undisturbed work."""
    videos = [name for name in found if name.endswith(".mp4") and FRAMES not in name]
    return sum(found[name] != end.get(name) for name in videos)

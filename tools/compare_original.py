"""Times the released PyTorch original against ours, on the CPU of one machine, in one run.

    git clone https://github.com/Aurora-edu/One-Forcing ../One-Forcing
    python tools/compare_original.py --original=../One-Forcing --out=comparison.json

Both sides have the same sizes, weights and work: a generator update, a critic update (loss, backward with
the original's activation checkpointing, clipping, AdamW) and a rollout without gradient. First both sides
repeat one update from the same noise, and the distance of losses and gradients is printed. Then the
sides take turns, each in a process of its own on the same cores. Medians count, without the first run and
compilation. It needs the packages of `pip install -e '.[test]'`, but no weights and no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from oneforcing_jax.bench.setting import BLOCK_FRAMES, WORKS, Setting
from oneforcing_jax.errors import InputError
from oneforcing_jax.system.command import Help, any_path, ending
from oneforcing_jax.system.files import write_whole

SIDES = ("original", "ours")
# Seconds before a run: OpenMP's threads spin for 0.2 s after the other side's work, and would be in the way.
PAUSE = 0.5
# An iteration of the published training: a critic update, and a generator update in every fifth.
GENERATOR_EVERY = 5
NEEDED = (
    "model/one_forcing.py",
    "pipeline/self_forcing_training.py",
    "trainer/one_forcing.py",
    "utils/wan_wrapper.py",
    "wan/modules/causal_model.py",
    "config.yaml",
    "chunkwise_config.yaml",
)
PACKAGES = ("torch", "diffusers", "yaml", "einops")
Times = dict[str, dict[str, list[float]]]


def check_clone(folder: Path) -> None:
    """Whether the folder is a clone of the original, and whether its packages are here.

    Raises:
      InputError: one line that names what was expected.
    """
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"--original: expected a clone of github.com/Aurora-edu/One-Forcing, found no {missing[0]} "
            f"in {folder}; run git clone https://github.com/Aurora-edu/One-Forcing and give its folder"
        )
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise InputError(
            f"expected the packages that the original imports, found no {', '.join(absent)}; "
            "run pip install -e '.[test]' pyyaml"
        )


def _serve(side: str, setting: Setting, folder: Path, connection: Any) -> None:
    """A side's process: carries out (method, arguments) until there are no more."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: setting.cores])
    try:
        # Imported here alone, so that neither side holds the other's library.
        made: Any
        if side == "original":
            from oneforcing_jax.bench.original import Original

            made = Original(setting, folder)
        else:
            from oneforcing_jax.bench.ours import Ours

            made = Ours(setting, connection.recv())
        while (call := connection.recv()) is not None:
            method, *arguments = call
            if method == "peak_bytes":
                connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            else:
                connection.send(getattr(made, method)(*arguments))
    except Exception as error:
        connection.send(RuntimeError(f"{side}: {error}\n{traceback.format_exc()}"))


class Worker:
    """One side in its own process."""

    def __init__(self, side: str, setting: Setting, folder: Path) -> None:
        self.side = side
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(side, setting, folder, theirs), daemon=True
        )
        self.process.start()
        theirs.close()

    def call(self, method: str, *arguments: Any) -> Any:
        """The answer of a method of the side."""
        try:
            self.connection.send((method, *arguments))
            answer = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            raise OSError(f"{self.side}: its process ended during {method!r}") from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self.process.join(10)


@contextlib.contextmanager
def workers(
    setting: Setting, folder: Path, environment: Mapping[str, str]
) -> Iterator[dict[str, Worker]]:
    """Both sides, ours with the original's weights."""
    os.environ.update(environment)
    made: dict[str, Worker] = {}
    try:
        for side in SIDES:
            made[side] = Worker(side, setting, folder)
        made["ours"].connection.send(made["original"].call("weights"))
        yield made
    finally:
        for worker in made.values():
            worker.close()


def agreement(setting: Setting, folder: Path) -> dict[str, dict[str, float]]:
    """Losses and gradients of both sides from the same weights, batch and noise."""
    # It is compiled quickly, since it runs once.
    environment = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    with workers(setting, folder, environment) as sides:
        found = {
            work: sides["ours"].call("check", work, sides["original"].call("record", work))
            for work in ("generator", "critic")
        }
    del os.environ["XLA_FLAGS"]
    return found


def measure(setting: Setting, folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds of every run, taken in turns; compilation, and peak memory of each process."""
    times: Times = {side: {work: [] for work in WORKS} for side in SIDES}
    with workers(setting, folder, {}) as sides:
        compiled = {side: sides[side].call("prepare") for side in SIDES}
        for repeat in range(-1, repeats):
            for work in WORKS:
                for side in SIDES if repeat % 2 else reversed(SIDES):
                    time.sleep(PAUSE)
                    seconds = sides[side].call("run", work)
                    if repeat >= 0:
                        times[side][work].append(seconds)
        return {
            "seconds": times,
            "compile_s": compiled["ours"],
            "peak_bytes": {side: sides[side].call("peak_bytes") for side in SIDES},
            "operations": sides["ours"].call("operations"),
        }


def summary(times: Times) -> list[dict[str, Any]]:
    """A row for each work, and one for the mean iteration of the training."""
    middle = {
        side: {work: statistics.median(runs) for work, runs in of.items()}
        for side, of in times.items()
    }
    for of in middle.values():
        of["iteration"] = of["critic"] + of["generator"] / GENERATOR_EVERY
    rows = []
    for work in (*WORKS, "iteration"):
        original, ours = (middle[side][work] for side in SIDES)
        row = {"work": work, "original_s": original, "ours_s": ours, "ratio": original / ours}
        if work in WORKS:
            ratios = [a / b for a, b in zip(*(times[side][work] for side in SIDES), strict=True)]
            row |= {"least": min(ratios), "greatest": max(ratios)}
        rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as text."""
    lines = [("work", "original s", "ours s", "ratio", "least", "greatest")]
    for row in rows:
        spread = tuple(f"{row[x]:.2f}" if x in row else "" for x in ("least", "greatest"))
        numbers = (f"{row['original_s']:.3f}", f"{row['ours_s']:.3f}", f"{row['ratio']:.2f}")
        lines.append((row["work"], *numbers, *spread))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = ("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(texts)


def compare(setting: Setting, folder: Path, repeats: int, check: bool) -> dict[str, Any]:
    """The whole comparison; prints as it goes."""
    os.environ.update({"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""})
    # These are set before the libraries are loaded, which read them once.
    os.environ["OMP_NUM_THREADS"] = str(setting.cores)
    clip = f"{setting.latents[1]} latent frames of {setting.rows}x{setting.columns}"
    print(f"{setting.layout}, {clip}, {setting.dtype}, {setting.cores} cores")
    print(f"student {setting.student_sizes()}\nteacher {setting.teacher_sizes()}")
    checked = agreement(setting, folder) if check else {}
    for work, row in checked.items():
        print(
            f"same noise, {work}: loss {row['original_loss']:.6f} (original) {row['our_loss']:.6f} "
            f"(ours), distance of gradients {row['gradient_distance']:.1e}",
            flush=True,
        )
    made = measure(setting, folder, repeats)
    rows = summary(made["seconds"])
    print(table(rows))
    compiled = ", ".join(f"{work} {s:.1f}" for work, s in made["compile_s"].items())
    peaks = ", ".join(f"{side} {made['peak_bytes'][side] / 1e9:.2f}" for side in SIDES)
    print(f"compilation s (ours, once): {compiled}\npeak resident GB: {peaks}", flush=True)
    return {
        "setting": {**vars(setting), "repeats": repeats},
        "machine": {"processor": platform.processor(), "cores": os.cpu_count()},
        "agreement": checked,
        "rows": rows,
        **made,
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="compare_original",
        description=__doc__,
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.add_argument("--original", type=any_path, required=True, help="a clone of the original")
    parser.add_argument(
        "--layout", choices=tuple(BLOCK_FRAMES), default="framewise", help="of the blocks"
    )
    for name, help_text in (
        ("dim", "width of the student, a multiple of 128"),
        ("layers", "of the student"),
        ("rows", "of a latent frame"),
        ("columns", "of a latent frame"),
    ):
        parser.add_argument(f"--{name}", type=int, default=getattr(Setting, name), help=help_text)
    parser.add_argument(
        "--teacher",
        choices=("scaled", "same"),
        default="scaled",
        help="its size beside the student's",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of both sides"
    )
    parser.add_argument("--cores", type=int, default=0, help="of each side; 0: all")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the median counts")
    parser.add_argument("--no-check", action="store_true", help="times alone")
    parser.add_argument("--out", type=any_path, help="JSON file to write")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    given = _parse(arguments)
    with ending("nothing was written"):
        check_clone(given.original)
        if given.repeats < 1:
            raise InputError(f"repeats: expected 1 or more, found {given.repeats}")
        all_cores = len(os.sched_getaffinity(0))
        if not 0 <= given.cores <= all_cores:
            raise InputError(f"cores: expected 0 to {all_cores}, found {given.cores}")
        names = ("layout", "dim", "layers", "rows", "columns", "teacher", "dtype")
        chosen = {name: getattr(given, name) for name in names}
        setting = Setting(**chosen, cores=given.cores or all_cores)
        folder = given.original.resolve()
        made = compare(setting, folder, given.repeats, not given.no_check)
        if given.out:
            write_whole(given.out, (json.dumps(made, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()

"""What a run reports: a progress line, JSONL and TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm


class Log:
    """Metrics of one stage, written to `folder` and to a progress bar.

    Use as a context manager. Values are fetched from the devices at `every`-th iterations only, so
    that the host never waits for a step in between.
    """

    def __init__(self, folder: Path, name: str, start: int, iterations: int, every: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "metrics.jsonl").open("a", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"))
        self._bar = tqdm(total=iterations, initial=start, desc=name, unit="it", dynamic_ncols=True)
        self._every, self._last, self._since = every, iterations, (start, time.perf_counter())
        self._latest: dict[str, Any] = {}

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()
        self._board.close()
        self._file.close()

    def step(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        """Metrics of an iteration that has run; what an iteration does not report keeps its last value.

        Raises:
          FloatingPointError: a loss or gradient is not finite.
        """
        self._latest |= metrics
        self._bar.update(1)
        done = iteration + 1
        if done % self._every and done != self._last:
            return
        values = {name: float(v) for name, v in jax.device_get(self._latest).items()}
        if bad := [
            name for name, v in values.items() if v != v or v in (float("inf"), float("-inf"))
        ]:
            raise FloatingPointError(
                f"training: {', '.join(bad)} not finite at iteration {iteration}; the last checkpoint is "
                "good: lower the learning rate or the clipping norm and run the same command again"
            )
        now = time.perf_counter()
        seconds = (now - self._since[1]) / max(done - self._since[0], 1)
        self._since = (done, now)
        row = {"iteration": done, "seconds_per_iteration": round(seconds, 4), **values}
        self._file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            self._board.add_scalar(name, value, done)
        shown = {name: f"{v:.3g}" for name, v in values.items() if name.split("/")[-1] in _SHOWN}
        self._bar.set_postfix(shown)


_SHOWN = ("loss", "logit_gap", "gradient_norm")

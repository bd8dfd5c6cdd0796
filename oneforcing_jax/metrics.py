"""What a run reports: a progress line, JSONL and TensorBoard."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from oneforcing_jax.data.files import write_whole


class Log:
    """Metrics of one stage, written to `folder` and to a progress bar by the first process.

    Use as a context manager. Values are fetched from the devices at `every`-th iterations only, so
    that the host never waits for a step in between.

    Attributes:
      latest: value of every metric when it was last fetched.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        start: int,
        iterations: int,
        every: int,
        latest: Mapping[str, float],
    ) -> None:
        """Rows beyond iteration `start` are removed: the run that wrote them was not saved."""
        mine = jax.process_index() == 0
        folder.mkdir(parents=True, exist_ok=True)
        if mine:
            _truncate(folder / ROWS, start)
        self._file = (folder / ROWS if mine else Path(os.devnull)).open("a", buffering=1)
        self._board = SummaryWriter(
            str(folder / "tensorboard"), purge_step=start + 1, write_to_disk=mine
        )
        self._bar = tqdm(
            total=iterations,
            initial=start,
            desc=name,
            unit="it",
            dynamic_ncols=True,
            disable=not mine,
        )
        self._every, self._last, self._since = every, iterations, (start, time.perf_counter())
        self.latest = dict(latest)
        self._unchecked: list[tuple[int, Mapping[str, Any]]] = []

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()
        self._board.close()
        self._file.close()

    def step(self, done: int, metrics: Mapping[str, Any]) -> None:
        """Metrics of iteration number `done`; what it does not report keeps its last value.

        Raises:
          FloatingPointError: as `check`.
        """
        self._unchecked.append((done, metrics))
        self._bar.update(1)
        if done % self._every and done != self._last:
            return
        values = self.check()
        now = time.perf_counter()
        seconds = (now - self._since[1]) / max(done - self._since[0], 1)
        self._since = (done, now)
        row = {"iteration": done, "seconds_per_iteration": round(seconds, 4), **values}
        self._file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            self._board.add_scalar(name, value, done)
        shown = {name: f"{v:.3g}" for name, v in values.items() if name.split("/")[-1] in _SHOWN}
        self._bar.set_postfix(shown)

    def check(self) -> dict[str, float]:
        """The latest values, all since the last check being finite; to be called before a state is saved.

        Raises:
          FloatingPointError: one is not; names it and its iteration.
        """
        unchecked, self._unchecked = self._unchecked, []
        for done, metrics in unchecked:
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            bad = [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]
            if bad:
                raise FloatingPointError(
                    f"training: expected finite values, found {', '.join(bad)} at iteration {done}"
                )
            self.latest |= values
        return dict(sorted(self.latest.items()))


def _truncate(file: Path, last: int) -> None:
    """Removes the rows of iterations beyond `last`, and what a kill left of a row."""
    if not file.is_file():
        return
    lines = file.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    kept = [line for line in whole if json.loads(line)["iteration"] <= last]
    if kept != lines:
        write_whole(file, "".join(kept).encode())


ROWS = "metrics.jsonl"
_SHOWN = ("loss", "logit_gap", "gradient_norm")

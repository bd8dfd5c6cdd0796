"""What a run reports: a progress line, JSONL and TensorBoard, Weights & Biases if asked; and its alarms."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import resource
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

from oneforcing_jax.errors import InputError, NotFinite
from oneforcing_jax.system import bounded, places, processes
from oneforcing_jax.system.files import Growing, write_whole
from oneforcing_jax.targets import chips
from oneforcing_jax.training.alarms import Watch

ROWS = "metrics.jsonl"
# Names that begin so are of the machine, all others of the run.
RATES, HOSTS = "rates/", "rates/hosts"
# Where a host's time goes, but for its own work: batches, checkpoints, other hosts and devices, and what is
# not training, such as samples.
_PLACES = ("data", "saving", "waiting", "aside")
# Seconds after which rows are published to a bucket, where no checkpoint does it before.
_PUBLISH = 60.0
# Metrics of an update that the progress line shows, and their names there.
_SHOWN = {
    "loss": "loss",
    "gradient_norm": "grad",
    "real_logit": "real",
    "fake_logit": "fake",
    "logit_gap": "gap",
}


class Cost(NamedTuple):
    """What an update costs, for rates.

    Attributes:
      tokens: of the clips of a batch, as the transformer sees them.
      flops: operations of one update of each trained network, nothing computed again.
    """

    tokens: int
    flops: Mapping[str, float]


class Host(NamedTuple):
    """Seconds of an iteration that a host waits for a batch and for checkpoints, and in which it waits for
    nobody else: neither for other hosts nor for its devices."""

    data: float
    saving: float
    busy: float


class Log:
    """Metrics of one stage, written to `folder` and to a progress bar by the first process.

    Use as a context manager. Values are fetched from the devices at `every`-th iterations only, so
    that the host never waits for a step in between. Rows beyond iteration `start` are removed: the
    run that wrote them was not saved.

    Args:
      folder: of the stage.
      name: shown before the bar.
      start, iterations: done before this run, and in all.
      every: iterations of a row.
      latest: values of the metrics at `start`.
      cost: of the updates.
      wandb: a project of Weights & Biases; "" for none.

    Attributes:
      latest: value of every metric when it was last fetched.
      folder: of a disk; what is put into it gets to `folder` above.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        start: int,
        iterations: int,
        every: int,
        latest: Mapping[str, float],
        cost: Cost,
        wandb: str = "",
    ) -> None:
        self.latest, self._cost = dict(latest), cost
        self._every, self._last = every, iterations
        self._unchecked: list[tuple[int, Mapping[str, Any]]] = []
        mine = processes.is_first()
        self._growing, self._published = Growing(folder), time.monotonic()
        self.folder = here = self._growing.folder
        rows = _truncate(folder / ROWS, start, here / ROWS) if mine else []
        self._watch = Watch(rows)
        self._file = (here / ROWS if mine else Path(os.devnull)).open("a", buffering=1)
        self._board = SummaryWriter(
            str(here / "tensorboard"), purge_step=start + 1, write_to_disk=mine
        )
        self._wandb = _begin_wandb(wandb, folder, name, here) if wandb and mine else None
        self._bar = tqdm(
            total=iterations,
            initial=start,
            desc=name,
            unit="it",
            dynamic_ncols=True,
            disable=not mine,
        )
        self._since, self._operations = (start, time.perf_counter()), 0.0
        self._spent = dict.fromkeys(_PLACES, 0.0)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()
        self._board.close()
        self._file.close()
        if self._wandb:
            self._wandb.finish()
        self._growing.close()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """A context for work that is not training, whose time does not count.

        Raises:
          NotFinite: as `check`, which waits for the training before it.
        """
        self.check()
        with self.on("aside"):
            yield

    @contextlib.contextmanager
    def on(self, place: str) -> Iterator[None]:
        """A context for time that goes to one of `_PLACES`; what goes to none is the host's own work."""
        start = time.perf_counter()
        yield
        self._spent[place] += time.perf_counter() - start

    def step(self, done: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics of iteration number `done`; those that it does not report keep their last values.

        Raises:
          NotFinite: as `check`.
        """
        self._unchecked.append((done, metrics))
        updated = {name.split("/")[0] for name in metrics}
        self._operations += sum(self._cost.flops.get(net, 0.0) for net in updated)
        self._bar.update(1)
        if done % self._every and done != self._last:
            return
        values = self._fetch()
        rates, hosts = self._rates(done)
        self._write(done, rates, values, hosts)

    def check(self) -> dict[str, float]:
        """The latest values, when all since the last check are finite. Call it before a state is saved: in a
        bucket the rows up to there are published, too.

        Raises:
          NotFinite: one is not; names it and its iteration.
          OSError: the server of the bucket failed.
        """
        values = self._fetch()
        self._publish()
        return values

    def _publish(self) -> None:
        self._board.flush()
        self._growing.publish()
        self._published = time.monotonic()

    def _fetch(self) -> dict[str, float]:
        unchecked, self._unchecked = self._unchecked, []
        for done, metrics in unchecked:
            with self.on("waiting"):
                fetched = jax.device_get(metrics)
            values = {name: float(value) for name, value in fetched.items()}
            bad = [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]
            if bad:
                raise NotFinite(
                    f"training: expected finite values, found {', '.join(bad)} at iteration {done}"
                )
            self.latest |= values
        return dict(sorted(self.latest.items()))

    def _rates(self, done: int) -> tuple[dict[str, float], list[Host]]:
        """Speed since the last row, memory at its highest since the start, and the time of each host.

        The time of an iteration is split as on the slowest host, the one that waits least for the others and
        for its devices.
        """
        now, before, spent = time.perf_counter(), self._since, self._spent
        seconds = max(now - before[1] - spent["aside"], 1e-9)
        operations = self._operations
        self._since, self._operations = (done, now), 0.0
        self._spent = dict.fromkeys(_PLACES, 0.0)
        iterations, device = max(done - before[0], 1), jax.local_devices()[0]
        mine = Host(spent["data"], spent["saving"], seconds - spent["waiting"])
        found = processes.exchange([x / iterations for x in mine], f"the row of iteration {done}")
        hosts = [Host(*times) for times in found]
        slowest = max(hosts, key=lambda host: host.busy)
        rates = {
            "seconds_per_iteration": seconds / iterations,
            "data_seconds": slowest.data,
            "saving_seconds": slowest.saving,
            "computing_seconds": max(seconds / iterations - slowest.data - slowest.saving, 0.0),
            "tokens_per_second": self._cost.tokens * iterations / seconds,
            "tflops_per_second": operations / seconds / 1e12,
            "memory_gb": _memory(device) / 1e9,
        }
        chip = chips.find(device.device_kind)
        if chip:
            rates["flop_utilisation"] = operations / seconds / (chip.peak * jax.device_count())
        return {f"{RATES}{name}": _short(value) for name, value in rates.items()}, hosts

    def _write(
        self,
        done: int,
        rates: Mapping[str, float],
        values: Mapping[str, float],
        hosts: Sequence[Host],
    ) -> None:
        row: dict[str, Any] = {"iteration": done, **rates, **values}
        for name, value in row.items():
            self._board.add_scalar(name, value, done)
        if self._wandb:
            self._wandb.log(row, step=done)
        begun = self._watch.look(row)
        for text in begun:
            tqdm.write(f"warning: iteration {done}: {text}")
        line, more = _line(values, rates), dict[str, Any]({"alarms": begun} if begun else {})
        if len(hosts) > 1:
            named = dict(zip(processes.names(), hosts, strict=True))
            more[HOSTS] = {
                name: {place: _short(x) for place, x in host._asdict().items()}
                for name, host in named.items()
            }
            name, host = max(named.items(), key=lambda item: item[1].busy)
            line += f", slowest {name}: {host.busy:.3g} s, {host.data:.3g} of them for data"
        self._file.write(json.dumps(row | more) + "\n")
        self._bar.set_postfix_str(line)
        if time.monotonic() - self._published > _PUBLISH:
            self._publish()


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _line(values: Mapping[str, float], rates: Mapping[str, float]) -> str:
    """What stands behind the bar."""
    nets = dict.fromkeys(name.split("/")[0] for name in values if name.endswith("/loss"))
    parts = []
    for net in nets:
        found = {shown: values.get(f"{net}/{name}") for name, shown in _SHOWN.items()}
        parts.append(" ".join([net, *(f"{k} {v:.3g}" for k, v in found.items() if v is not None)]))
    parts.append(f"{rates[f'{RATES}tokens_per_second']:.3g} tokens/s")
    if f"{RATES}flop_utilisation" in rates:
        parts.append(f"MFU {rates[f'{RATES}flop_utilisation']:.0%}")
    return ", ".join([*parts, f"{rates[f'{RATES}memory_gb']:.3g} GB"])


def _memory(device: Any) -> int:
    """Bytes at the highest: of the device, or of this process where the device does not tell."""
    stats = device.memory_stats() or {}
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return stats.get("peak_bytes_in_use") or 1024 * kilobytes


def _begin_wandb(project: str, folder: Path, name: str, here: Path) -> Any:
    """A run of Weights & Biases with its files in `here`, which an interrupted one continues."""
    try:
        wandb = importlib.import_module("wandb")
    except ImportError:
        raise InputError(
            'config: field "wandb": expected the package wandb; pip install "oneforcing_jax[wandb]", or '
            "leave the field empty"
        ) from None
    file = folder / "wandb.txt"
    if not file.is_file():
        write_whole(file, secrets.token_hex(4).encode())
    return wandb.init(
        project=project, name=name, id=file.read_text(), resume="allow", dir=str(here)
    )


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows that a stage wrote; what a kill left of the last one is not among them.

    Raises:
      InputError: the file is damaged.
    """
    file = folder / ROWS
    return [row for _, row in _whole(file, places.read(file))] if file.is_file() else []


def _whole(file: Path, content: bytes) -> list[tuple[bytes, dict[str, Any]]]:
    """The whole lines of a file of rows, and what they say."""
    *lines, _ = content.split(b"\n")
    found = []
    for number, line in enumerate(lines, 1):
        try:
            row = bounded.line(line)
            # Alarms and times of hosts are no numbers; nothing is a word, or longer than a number is.
            sound = type(row["iteration"]) is int and not any(
                isinstance(x, str | None) or (type(x) is int and abs(x) >= 2**63)
                for x in row.values()
            )
        except (ValueError, LookupError, TypeError):
            sound = False
        if not sound:
            raise InputError(
                f"{file}, line {number}: expected a row of metrics, found a damaged one; restore the file "
                "from a copy, or remove the line"
            )
        found.append((line, row))
    return found


def _truncate(file: Path, last: int, to: Path) -> Sequence[Mapping[str, Any]]:
    """Writes to `to` the rows of a file, but for those of iterations beyond `last` and what a kill left of
    one; returns them."""
    if not file.is_file():
        return []
    before = places.read(file)
    kept = [(line, row) for line, row in _whole(file, before) if row["iteration"] <= last]
    content = b"".join(line + b"\n" for line, _ in kept)
    if content != before or to != file:
        write_whole(to, content)
    return [row for _, row in kept]

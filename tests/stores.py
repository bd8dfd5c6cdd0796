"""A process that writes samples of a store.

    python tests/stores.py STORE PART READY COUNT

writes the even (0) or odd (1) samples that are missing, once COUNT processes have made their files READY.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from oneforcing_jax.data.store import Store

COUNT, FIELDS = 160, {"x": ((64, 64, 8), "float32"), "y": ((4,), "float32")}


def sample(index: int) -> dict[str, np.ndarray]:
    """What a process writes as sample `index`."""
    return {name: np.full(shape, index, dtype) for name, (shape, dtype) in FIELDS.items()}


@contextlib.contextmanager
def writers(store: Path, parts: str, ready: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that write the even (0) or odd (1) samples, begin at once, and are killed at the end."""
    ready.mkdir()
    found = [
        subprocess.Popen(
            [sys.executable, __file__, str(store), part, ready / str(i), str(len(parts))],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        for i, part in enumerate(parts)
    ]
    try:
        yield found
    finally:
        for process in found:
            process.send_signal(signal.SIGKILL)
            process.wait()


def write(folder: str, part: int, ready: Path, count: int) -> None:
    """What such a process does."""
    store = Store.open(folder)
    ready.touch()
    while len(list(ready.parent.iterdir())) < count:
        time.sleep(0.001)
    store = Store.create(folder, len(store), FIELDS)
    for index in np.flatnonzero(~store.done()).tolist():
        if index % 2 == part:
            store.write(index, sample(index))


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))

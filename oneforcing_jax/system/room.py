"""Room for what a command will make, in memory and on disk, asked before it starts; memory that is kept."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from oneforcing_jax.errors import InputError
from oneforcing_jax.system import places

# Of Linux: what programs can still have of the machine, and of the group of processes that this one is in.
MEMORY, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")

# The kind of memory of a device's host.
HOST = "pinned_host"


def size(tree: Any, dtype: Any = None) -> int:
    """Bytes of a tree of arrays, or of what describes them; in another dtype, where one is given."""
    return sum(
        math.prod(leaf.shape) * np.dtype(dtype or leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
        if hasattr(leaf, "shape")
    )


def free_memory() -> float:
    """Bytes of the host's memory that this process can still have; infinite where nothing says so."""
    free = math.inf
    if MEMORY.is_file():
        rows = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines() if ":" in line)
        free = 1024.0 * int(rows["MemAvailable"].split()[0])
    most, used = GROUP / "memory.max", GROUP / "memory.current"
    if most.is_file() and used.is_file() and (limit := most.read_text().strip()).isdigit():
        free = min(free, int(limit) - int(used.read_text()))
    return free


def per_device(tree: Any) -> int:
    """Bytes of abstract arrays on one device, without what lies in the host's memory."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding.memory_kind != HOST
    )


def processors(what: str) -> list[Any]:
    """The host's processors as devices.

    Args:
      what: is to lie there, in the error.

    Raises:
      InputError: JAX was told to use none.
    """
    try:
        found: list[Any] = jax.local_devices(backend="cpu")
    except RuntimeError as error:
        raise InputError(
            f"{what}: expected processors beside the devices for host, found none; add cpu to "
            "JAX_PLATFORMS"
        ) from error
    return found


def check_memory(what: str, needed: float, advice: str, devices: Sequence[Any] = ()) -> None:
    """Compares bytes with the memory of devices.

    Args:
      what: needs it, in the error.
      needed: bytes, over all the devices.
      advice: what to do.
      devices: among which they are spread evenly; none, or processors: the host's memory.

    Raises:
      InputError: it does not fit.
    """
    if not devices or devices[0].platform == "cpu":
        free, where = free_memory(), "memory"
    else:
        limits = (device.memory_stats() or {} for device in devices)
        free = sum(limit.get("bytes_limit", math.inf) for limit in limits)
        where = f"memory of {len(devices)} devices"
    if needed > free:
        raise InputError(
            f"{what}: expected at least {gigabytes(needed)} of {where}, found {gigabytes(free)}; {advice}"
        )


def check_disk(what: str, needed: float, folder: Path) -> None:
    """Compares bytes with what is free where a folder is, or will be made; in a bucket there is room.

    Raises:
      InputError: they do not fit.
    """
    if places.is_url(folder):
        return
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    total, _, free = shutil.disk_usage(there)
    if total and needed > free:  # what is no disk has no size
        raise InputError(
            f"{what}: expected at least {gigabytes(needed)} free on the disk of {folder}, found "
            f"{gigabytes(free)}; make room, or choose another folder"
        )


def gigabytes(count: float) -> str:
    """A number of bytes in words."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed, where JAX will compute on CPU. Otherwise each step of a small model
    faults the same pages in again, tens of thousands of them. It must be told before JAX has a device, whose
    threads stay with the pools of memory that they begin with."""
    asked = jax.config.jax_platforms  # type: ignore[attr-defined]
    others = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
    if sys.platform == "linux" and (asked == "cpu" or (not asked and not others)):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            m_trim_threshold, m_top_pad, m_mmap_max, m_arena_max = -1, -2, -4, -8
            libc.mallopt(m_mmap_max, 0)
            libc.mallopt(m_trim_threshold, 2**31 - 1)
            libc.mallopt(m_top_pad, 2**28)
            libc.mallopt(m_arena_max, 1)

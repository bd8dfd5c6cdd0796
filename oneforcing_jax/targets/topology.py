"""Names of targets to devices that programs can be compiled for, whether or not they are there.

tpu:v5p:2x2x4       a slice of TPUs        tpu:v5p:2x2x4*2     two of them
gpu:h200:8          GPUs, eight a host     local               the devices of this machine
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

from oneforcing_jax.errors import InputError, MissingPackage
from oneforcing_jax.targets import chips
from oneforcing_jax.targets.chips import Chip

FORMS = "tpu:v5p:2x2x4, tpu:v5p:2x2x4*2, gpu:h200:8 or local"
GPUS_A_HOST = 8


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices of one kind.

    Attributes:
      name: as given.
      platform: "tpu", "cuda" or "cpu".
      chip: of each device.
      devices: of JAX; those of a target that is not here can only be compiled for.
    """

    name: str
    platform: str
    chip: Chip
    devices: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class _Name:
    platform: str
    chip: str
    shape: tuple[int, ...]
    slices: int


def parse(name: str) -> _Name:
    """The parts of a target's name.

    Raises:
      InputError: not such a name, or an unknown chip.
    """
    match = re.fullmatch(r"(tpu|gpu):(\w+):(\d+(?:x\d+)*)(?:\*(\d+))?", name)
    if not match and name != "local":
        raise InputError(
            f"target: expected {FORMS}, found {name!r}; write it in one of these forms"
        )
    if not match:
        return _Name("local", "", (), 1)
    kind, chip, shape, slices = match.groups()
    known = [n for n, c in chips.CHIPS.items() if (kind == "gpu") == (c.cuda is not None)]
    if chip not in known:
        raise InputError(
            f"target: expected a {kind} among {known}, found {chip!r}; choose one of them"
        )
    sizes = tuple(int(size) for size in shape.split("x"))
    if min(sizes) < 1 or int(slices or 1) < 1 or (kind == "gpu" and (len(sizes) > 1 or slices)):
        raise InputError(f"target: expected {FORMS}, found {name!r}; give sizes of 1 or more")
    return _Name(kind, chip, sizes, int(slices or 1))


def prepare(name: str) -> None:
    """Sets what the compilers read from the environment; call it before JAX starts a backend.

    Raises:
      InputError: not a target's name.
      MissingPackage: the target's compiler is not installed.
    """
    platform = parse(name).platform
    if platform == "local":
        return
    package, extra = {
        "tpu": ("libtpu", "plan-tpu"),
        "gpu": ("jax_cuda12_plugin", "plan-gpu"),
    }[platform]
    if not importlib.util.find_spec(package):
        raise MissingPackage(
            f"target {name}: expected its compiler, the package {package}, found none; "
            f'pip install "oneforcing_jax[{extra}]"'
        )
    # Nothing runs: the host's devices hold no array, and an accelerator that is there stays untouched.
    import jax

    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")  # JAX reads the environment once, when it is imported
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # alarms about slow compilation
    if platform == "tpu":
        libtpu = importlib.import_module("libtpu")
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        # Several may compile at once. The lock that this lifts guards chips, and no chip is opened.
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        # Otherwise it warns that it does not find the machine that is not there.
        os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_LIBRARY_PATH", libtpu.get_library_path())


def find(name: str) -> Target:
    """The devices of a target.

    Raises:
      InputError: not a target's name, or a topology that its chip does not have.
      MissingPackage: the target's compiler is not installed.
    """
    parsed = parse(name)
    prepare(name)
    if parsed.platform == "local":
        return _local()
    chip = chips.CHIPS[parsed.chip]
    make = _gpus if parsed.platform == "gpu" else _tpus
    try:
        devices = make(parsed)
    except Exception as error:  # what compilers raise for a bad topology has no type of its own
        said = str(error).splitlines()[0]
        raise InputError(
            f"target {name}: expected a topology that {parsed.chip} has, found {said}; choose another"
        ) from None
    platform = "cuda" if parsed.platform == "gpu" else "tpu"
    return Target(name, platform, chip, devices)


def _local() -> Target:
    import jax

    devices = tuple(jax.devices())
    chip = chips.find(devices[0].device_kind) or _unknown(devices)
    platform = {"gpu": "cuda"}.get(devices[0].platform, devices[0].platform)
    return Target("local", platform, chip, devices)


def _unknown(devices: tuple[Any, ...]) -> Chip:
    """A device that is not in the table, such as a CPU. Its memory is an even share of the host's, and its
    rates are those of a few cores, so programs can be compared but not timed."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(devices)
    return Chip(devices[0].device_kind, memory, 0.0, 20e9, 10e9, 5e-6, seen=100e9)


def _tpus(name: _Name) -> tuple[Any, ...]:
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": name.slices} if name.slices > 1 else {}
    if math.prod(name.shape) == 1:  # hosts have four chips otherwise
        options["chips_per_host_bounds"] = (1, 1, 1)
    if name.chip == "v4":  # its two cores are one device, as on machines that have it
        options["chip_config_name"] = "megacore"
    kind = {"v7x": "tpu7x"}.get(name.chip, name.chip)
    topology = f"{kind}:{'x'.join(map(str, name.shape))}"
    return tuple(topologies.get_topology_desc(topology, platform="tpu", **options).devices)


def _gpus(name: _Name) -> tuple[Any, ...]:
    from jax.experimental import topologies

    count = name.shape[0]
    each = min(count, GPUS_A_HOST)
    if count % each:
        raise InputError(f"{count} GPUs, not a multiple of the {GPUS_A_HOST} of a host")
    found = topologies.get_topology_desc(
        name.chip,
        platform="cuda",
        target_config=chips.gpu_config(name.chip),
        topology=f"1x{count // each}x{each}",
    )
    return tuple(found.devices)

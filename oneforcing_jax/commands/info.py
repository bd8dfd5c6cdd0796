"""Says what is here: versions, devices, the kernel of attention, and extras.

oneforcing info
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import oneforcing_jax
from oneforcing_jax.system.command import EXTRAS, PACKAGE, Help, ending

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
# Beside those that commands name when they miss a package: what lets JAX use or compile for accelerators. The
# tests' own is nobody else's.
DEVICES = {"jax_cuda13_plugin": "cuda", "libtpu": "tpu", "jax_cuda12_plugin": "plan-gpu"}
NEEDED = {package: extra for package, extra in (EXTRAS | DEVICES).items() if extra != "test"}


def main(arguments: Sequence[str] | None = None, prog: str = "oneforcing info") -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=Help)
    parser.parse_args(arguments)
    with ending("what is printed is right"):
        for name, words in (*versions(), *devices(), *extras()):
            print(f"{name:<18}{words}", flush=True)


def versions() -> Iterator[tuple[str, str]]:
    """Of this package, of Python, and of what the numbers come from."""
    yield PACKAGE, f"{oneforcing_jax.__version__} in {Path(oneforcing_jax.__file__).parent}"
    yield "python", platform.python_version()
    for name in PACKAGES:
        yield name, importlib.metadata.version(name)


def devices() -> Iterator[tuple[str, str]]:
    """What programs run on, and the module of attention there."""
    import jax

    from oneforcing_jax.models import kernels

    found = jax.devices()
    yield "devices", f"{len(found)} {found[0].platform}, {found[0].device_kind}"
    attend = kernels.chosen().attend
    yield "attention", getattr(attend, "func", attend).__module__


def extras() -> Iterator[tuple[str, str]]:
    """Each extra: whether its packages are here, and how to get them."""
    needed: dict[str, list[str]] = {}
    for package, extra in NEEDED.items():
        needed.setdefault(extra, []).append(package)
    for extra, packages in needed.items():
        absent = [name for name in packages if not importlib.util.find_spec(name)]
        how = f'without {", ".join(absent)}: pip install "{PACKAGE}[{extra}]"'
        yield f"extra {extra}", how if absent else "here"

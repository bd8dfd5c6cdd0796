"""Finds the largest tiles of splash attention that a TPU's compiler takes, by compiling; no TPU is needed.

    python tools/search_tiles.py --target=tpu:v6e:2x2

Large tiles read keys less often and take fewer steps of the grid; vector memory bounds them. Each kernel
starts from a tile known to compile and grows, queries and keys in turn, until neither can. The row that is
printed last belongs into `oneforcing_jax/models/kernels/splash.py`. Only a measurement can say which of the
tiles that compile is the fastest.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from oneforcing_jax.errors import InputError
from oneforcing_jax.system.command import Help, ending
from oneforcing_jax.targets import topology

# Where each kernel starts, and how its tile grows: (queries, keys) in tokens, the largest last.
START = 512
SIDES = (512, 1024, 2048, 3072)
COMPUTE = {"forward": (512, 1024), "gradient": (512,)}
# Every tile divides what these are filled up to, so that all kernels have a mask; a kernel sees one head
# after the other.
TOKENS, BATCH, HEADS, HEAD = 12280, 1, 2, 128


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="search_tiles", description=__doc__, formatter_class=Help)
    parser.add_argument("--target", required=True, help="a slice of TPUs, such as tpu:v5p:2x2x1")
    given = parser.parse_args(arguments)
    with ending("nothing is kept"):
        if topology.parse(given.target).platform != "tpu":
            raise InputError(
                f"target: expected a slice of TPUs, found {given.target}; splash attention runs there alone"
            )
        topology.prepare(given.target)
        search(topology.find(given.target).devices[0])


def search(device: Any) -> None:
    """Searches for every kernel, and prints each tile that was tried."""
    from oneforcing_jax.models.kernels import splash

    found: dict[str, tuple[int, ...]] = {}
    for kernel, computes in COMPUTE.items():
        best = _grow(device, kernel, max(computes))
        if kernel == "forward" and best == (START, START):  # less at once may leave room for more
            best = _grow(device, kernel, computes[0])
        found[kernel] = (*best, computes[-1])
    print(f'"{device.device_kind}": {splash.Tiles(**found)}')  # type: ignore[arg-type]


def _grow(device: Any, kernel: str, compute: int) -> tuple[int, int]:
    """The largest (queries, keys) that compile."""
    tile, open_sides = [START, START], [0, 1]
    with tqdm(desc=kernel, unit="tile") as bar:
        while open_sides:
            side = min(open_sides, key=lambda i: tile[i])
            larger = [size for size in SIDES if size > tile[side]]
            tried = list(tile)
            if larger:
                tried[side] = larger[0]
            if larger and _compiles(device, kernel, (*tried, compute)):
                tile = tried
            else:
                open_sides.remove(side)
            bar.update(1)
            bar.set_postfix_str(f"{tile[0]} x {tile[1]}")
    return tile[0], tile[1]


def _compiles(device: Any, kernel: str, tile: tuple[int, ...]) -> bool:
    import jax
    import jax.numpy as jnp

    from oneforcing_jax.models.kernels import splash

    sizes = splash.tiles_of("")._replace(**{kernel: tile})  # type: ignore[arg-type]
    attend = splash.made(sizes).attend
    place = jax.sharding.SingleDeviceSharding(device)
    like = jax.ShapeDtypeStruct((BATCH, TOKENS, HEADS, HEAD), jnp.bfloat16, sharding=place)

    def forward(q: Any, k: Any, v: Any) -> Any:
        return attend(q, k, v)

    def prefix(q: Any, k: Any, v: Any, length: Any) -> Any:
        return attend(q, k, v, length)

    def both(q: Any, k: Any, v: Any) -> Any:
        out, back = jax.vjp(forward, q, k, v)
        return back(out)

    length = jax.ShapeDtypeStruct((), jnp.int32, sharding=place)
    programs: list[tuple[Any, tuple[Any, ...]]] = [(both, (like,) * 3)]
    if kernel == "forward":  # hidden keys are told by number, or in a table
        programs = [(forward, (like,) * 3), (prefix, (like, like, like, length))]
    try:
        for program, arguments in programs:
            jax.jit(program).trace(*arguments).lower(lowering_platforms=("tpu",)).compile()
    except Exception as error:  # the compiler's has no type of its own
        if "vmem" not in str(error).lower():
            raise
        return False
    return True


if __name__ == "__main__":
    main()

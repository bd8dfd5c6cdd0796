"""Counts the walks through the code: of a prompt to its video, and of a config to updated parameters.

    python tools/walks.py            # both, at the smallest size, a minute on a laptop
    python tools/walks.py update --list

Each function of ours that runs in the main thread counts when it is first entered. A climb is a call into
a module that stands above the caller's: that imports it, directly or through others. A return enters a module
that was left before.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import jax
import numpy as np
from flax.linen import meta

import oneforcing_jax
from oneforcing_jax import generate, methods
from oneforcing_jax.convert import to_orbax
from oneforcing_jax.families import records
from oneforcing_jax.main import main as run_config
from oneforcing_jax.models import wan
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup.run import Run
from oneforcing_jax.system.command import Help
from oneforcing_jax.toy import codec, encoders, text
from oneforcing_jax.training import tiny

ROOT = Path(oneforcing_jax.__file__).parent
SMALL = WanConfig(
    24, 32, 2, 2, in_dim=4, out_dim=4, text_dim=16, text_len=8, freq_dim=8
)  # of two layers
PROMPT = "a red circle moves left"


class Walk:
    """What a profile of calls adds up to.

    Attributes:
      steps: (module, function) in the order in which they were first entered.
      climbs: (caller's module, module) of each first call that climbs.
    """

    def __init__(self) -> None:
        self.steps: dict[tuple[str, str], None] = {}
        self.climbs: list[tuple[str, str]] = []
        self._seen: set[CodeType] = set()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """For `sys.setprofile`."""
        if event != "call" or frame.f_code in self._seen:
            return
        self._seen.add(frame.f_code)
        step = module_of(frame.f_code), frame.f_code.co_qualname
        if not step[0] or "<" in frame.f_code.co_name or step in self.steps:
            return
        self.steps[step] = None
        back = frame.f_back
        while back and not (caller := module_of(back.f_code)):
            back = back.f_back
        if back and caller != step[0] and caller in below(step[0]):
            self.climbs.append((caller, step[0]))

    @property
    def modules(self) -> list[str]:
        """The modules in the order of the walk, each as often as it is entered."""
        names = [module for module, _ in self.steps]
        return [m for i, m in enumerate(names) if not i or names[i - 1] != m]

    @property
    def line(self) -> str:
        """The counts."""
        entered = self.modules
        distinct = len(set(entered))
        return (
            f"{len(self.steps)} functions in {distinct} modules, {len(self.climbs)} climbs, "
            f"{len(entered) - distinct} returns"
        )


@functools.cache
def module_of(code: CodeType) -> str:
    """The module of a function of ours, such as "causal.cache"; "" of others."""
    path = Path(code.co_filename)
    if not path.is_relative_to(ROOT):
        return ""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def imported(module: str) -> frozenset[str]:
    """Modules of ours that a module imports, anywhere in it."""
    file = ROOT.joinpath(*module.split("."))
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    if not file.is_file():
        return frozenset()
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    ours = (n.removeprefix(f"{ROOT.name}.") for n in names if n.startswith(f"{ROOT.name}."))
    return frozenset(
        name for name in ours if ROOT.joinpath(*name.split(".")).with_suffix(".py").is_file()
    )


@functools.cache
def below(module: str) -> frozenset[str]:
    """Modules that a module imports, directly or through others, and that do not import it."""

    def reached(start: str) -> set[str]:
        found, new = set[str](), {start}
        while new:
            found |= new
            new = {name for one in new for name in imported(one)} - found
        return found

    return frozenset(name for name in reached(module) if module not in reached(name))


@contextlib.contextmanager
def walked() -> Iterator[Walk]:
    """The walk of what runs within."""
    walk = Walk()
    sys.setprofile(walk)
    try:
        yield walk
    finally:
        sys.setprofile(None)


def of_generate(folder: Path) -> Walk:
    """From a prompt to a video of a student with random weights."""
    weights = meta.unbox(wan.model(SMALL).init(jax.random.key(0)))
    to_orbax.save_item(folder / "0" / "params_generator", jax.tree.map(np.asarray, weights))
    nets = {"nets": {"params_generator": records.describe(SMALL)}}
    (folder / "model.json").write_text(json.dumps(nets))
    noise = np.random.default_rng(0).integers(0, 256, (4, 24, 32, 3), np.uint8)
    encoders.save(folder, codec.fit(noise, channels=4), text.TextEncoder.train([PROMPT], 16, 8))
    options = [f"--checkpoint={folder}", f"--prompt={PROMPT}", f"--out={folder / 'video.mp4'}"]
    with walked() as walk:
        generate.main([*options, "--dtype=float32", "--frames=6", "--size=24x32", "--programs="])
    return walk


def of_update(folder: Path) -> Walk:
    """From a config to the first update of One-Forcing's networks."""
    file = str(ROOT.parent / "configs" / "noise.py")
    run = Run.of(configs.load(file))
    tiny.write_noise(folder / "noise", methods.make("one_forcing", run).fields, 8)
    one = "--config.stages.one_forcing.iterations=1"
    with walked() as walk:
        run_config([f"--config={file}", f"--workdir={folder}", one])
    return walk


WALKS: dict[str, Callable[[Path], Walk]] = {"generate": of_generate, "update": of_update}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="walks", description=__doc__, formatter_class=Help)
    parser.add_argument("walks", nargs="*", metavar="WALK", help="generate or update; default both")
    parser.add_argument("--list", action="store_true", help="modules in order, functions, climbs")
    given = parser.parse_args(arguments)
    for name in given.walks or WALKS:
        with tempfile.TemporaryDirectory() as folder:
            walk = WALKS[name](Path(folder))
        print(f"{name}: {walk.line}")
        if given.list:
            print("\n".join(f"  {module}: {function}" for module, function in walk.steps))
            print("climbs:", *(f"  {a} -> {b}" for a, b in walk.climbs), sep="\n")


if __name__ == "__main__":
    main()

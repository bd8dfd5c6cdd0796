"""The toy, smaller still: two colours, two shapes, two directions, about five minutes on two cores.

    python -m oneforcing_jax.main --config=configs/tiny.py --workdir=runs/tiny

It serves the tests and a first look. In this time it learns colour and shape, but no direction.
"""

import dataclasses
import runpy
from pathlib import Path

from oneforcing_jax.toy.world import WORLD, World

TOY = runpy.run_path(str(Path(__file__).with_name("toy.py")))


def get_config():
    c = TOY["get_config"]()
    words = {
        "colours": ("red", "blue"),
        "shapes": ("square", "triangle"),
        "directions": ("left", "right"),
    }
    c.world = dataclasses.asdict(WORLD) | {"frames": 4, "bounce": True, **words}
    c.latents.frames = 4
    c.seconds = {}
    c.ode.update({"steps": 8, "kept": (0, 2, 4, 6)})
    c.evaluation.samples = 32
    c.evaluation.long = 8
    c.stages.world.update({"count": 128, "judge_iterations": 100})
    c.stages.exam.least = {"colour": 0.9, "shape": 0.8}
    c.stages.ode_pairs.count = 64
    for name, iterations in (
        ("teacher", 240),
        ("teacher_forcing", 80),
        ("ode", 80),
        ("one_forcing", 20),
    ):
        c.stages[name].iterations = iterations
        c.stages[name].batch = 24 if name == "teacher" else 8
        if "model" in c.stages[name].optimisers:
            c.stages[name].optimisers.model.decay = iterations
    c.stages.one_forcing.samples.update({"every": 10, "prompts": TOY["spread"](World(**c.world))})
    c.stages.report.videos = 2
    return c

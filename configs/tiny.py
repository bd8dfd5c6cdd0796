"""The toy, smaller still: two colours, two shapes, two directions, about a minute on two cores.

    python -m oneforcing_jax.main --config=configs/tiny.py --workdir=runs/tiny

For tests and for a first look; it learns colour and direction, and little else.
"""

import dataclasses
import runpy
from pathlib import Path

from oneforcing_jax import build
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.toy.world import WORLD

TOY = runpy.run_path(str(Path(__file__).with_name("toy.py")))


def get_config():
    c = TOY["get_config"]()
    words = {
        "colours": ("red", "blue"),
        "shapes": ("square", "triangle"),
        "directions": ("left", "right"),
    }
    c.world = dataclasses.asdict(WORLD) | {"frames": 4, **words}
    c.latents.frames = 4
    size = WanConfig(96, 288, 3, 3, 12, 12, 32, 8, 64, rope_theta=30.0, qk_bias=1.0)
    c.generator = c.teacher = c.critic = build.wan(size, dtype="float32")
    c.head = {"layers": (0, 2), "ffn_dim": 96}
    c.ode = {"steps": 8, "kept": (0, 2, 4, 6), "guidance": 2.0}
    c.evaluation = {"samples": 32, "steps": 8, "guidance": 2.0}
    c.stages.world.count = 128
    c.stages.exam.least = {"colour": 0.9, "direction": 0.6}
    c.stages.ode_pairs.count = 64
    for name, iterations in (
        ("teacher", 500),
        ("teacher_forcing", 200),
        ("ode", 150),
        ("one_forcing", 60),
    ):
        c.stages[name].iterations = iterations
        c.stages[name].batch = 16
        if "model" in c.stages[name].optimisers:
            c.stages[name].optimisers.model.decay = iterations
    c.stages.report.videos = 2
    return c

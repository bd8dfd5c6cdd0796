"""The whole method on a laptop CPU, from video files to a one-step streaming generator.

    python -m oneforcing_jax.main --config=configs/toy.py --workdir=runs/toy

Renders captioned mp4 files, encodes them, trains a bidirectional teacher, a causal model by teacher
forcing, a one-step student by ODE regression, and distils it by One-Forcing; then scores every stage.
"""

import dataclasses
import runpy
from pathlib import Path

from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.setup.config import section
from oneforcing_jax.toy.world import FPS, WORLD
from oneforcing_jax.training.optim import Optimiser

# Modules of the toy's own kinds of stages.
KINDS = "oneforcing_jax.toy.stages."
# A caption says shape and direction. Colour, place and where it turns back are open, so a student of one
# step has to choose at once; no mixture of two of the colours is a third.
OPEN = dataclasses.replace(
    WORLD, told=("shape", "direction"), colours=("red", "green", "blue"), bounce=True
)
BASE = runpy.run_path(str(Path(__file__).with_name("base.py")))


def spread(world):
    """A few captions from all over a world."""
    captions = world.captions()
    return tuple(captions[:: len(captions) // 4 + 1])


def get_config():
    c, train = BASE["get_config"](), BASE["train_stage"]
    c.family = "oneforcing_jax.toy.encoders"
    c.mesh.update({"data": -1, "fsdp": 1})
    c.world = dataclasses.asdict(OPEN)
    c.latents = {"frames": 8, "channels": 12, "rows": 6, "columns": 6}
    c.fps = FPS
    c.seconds = {
        "world": 76, "teacher": 458, "exam": 18, "teacher_forcing": 88, "ode_pairs": 37, "ode": 64,
        "one_forcing": 199, "report": 100,
    }  # fmt: skip
    c.shift = 3.0
    # It is as Wan's, but the rotary frequencies suit eight frames of 3x3 tokens, and attention looks at
    # neighbours from the start, which it would not learn at this width and in this time.
    size = WanConfig(
        dim=128, ffn_dim=512, num_heads=4, num_layers=4, in_dim=12, out_dim=12, text_dim=32, text_len=8,
        freq_dim=64, rope_theta=30.0, qk_bias=1.0,
    )  # fmt: skip
    c.generator = c.teacher = c.critic = section(size)
    c.head = {"layers": (1, 3), "ffn_dim": 256}
    c.one_forcing.gradient_blocks = 0
    c.one_forcing.guidance = 0.5
    # A hundred times the paper's: at its weights the adversarial branch does not move this student, and
    # distribution matching alone loses variety (docs/study.md).
    c.one_forcing.gan_generator_weight = c.one_forcing.gan_discriminator_weight = 3.0
    c.one_forcing.generator_every = 4
    # Share of prompts that the negative one replaces when a model learns by flow matching.
    c.prompt_drop_rate = 0.1
    c.bell_weighting = False
    # Trajectories of the causal teacher for ODE initialisation; `kept` steps, and the end point.
    c.ode = {"steps": 12, "kept": (0, 3, 6, 9), "guidance": 0.5}
    c.evaluation = {"samples": 96, "steps": 16, "guidance": 0.5, "long": 24}

    def from_scratch(updates, rate):
        return {
            "model": section(
                Optimiser(
                    name="muon", learning_rate=rate, beta1=0.9, beta2=0.99, weight_decay=0.0, clip=1.0,
                    warmup=20, decay=updates,
                )  # fmt: skip
            )
        }  # fmt: skip

    def distil(rate):
        return section(Optimiser(learning_rate=rate, beta2=0.99))

    stages = {
        "world": {
            "kind": KINDS + "world",
            "count": 960,
            "codec_videos": 128,
            "judge_iterations": 500,
        },
        "teacher": train(
            "teacher",
            "world/store",
            1500,
            24,
            from_scratch(1500, 3e-3),
            {"model": "random"},
            log_every=10,
        ),
        "exam": {
            "kind": KINDS + "exam",
            "world": "world",
            "source": "teacher:model",
            "least": {"colour": 0.9, "shape": 0.6, "direction": 0.6},
        },
        "teacher_forcing": train(
            "teacher_forcing",
            "world/store",
            300,
            8,
            from_scratch(300, 1e-3),
            {"model": "teacher:model"},
            log_every=10,
        ),
        "ode_pairs": {
            "kind": "ode_pairs",
            "source": "teacher_forcing:model",
            "data": "world/store",
            "count": 256,
            "batch": 16,
            "share": "0/1",
        },
        "ode": train(
            "causal_ode",
            "ode_pairs/store",
            200,
            8,
            from_scratch(200, 1e-3),
            {"model": "teacher_forcing:model"},
            log_every=10,
        ),
        "one_forcing": train(
            "one_forcing",
            "world/store",
            240,
            8,
            {"generator": distil(1e-4), "critic": distil(5e-4)},
            {"generator": "ode:model", "critic": "teacher:model", "teacher": "teacher:model"},
            ema={"decay": 0.97, "start": 0},
            log_every=10,
            samples={"every": 60, "prompts": spread(OPEN)},
        ),
        "report": {
            "kind": KINDS + "report",
            "world": "world",
            "teacher": "teacher:model",
            "students": (
                ("untrained, 1 step", "random one_forcing:generator"),
                ("teacher forcing, 1 step", "teacher_forcing:model"),
                ("before One-Forcing, 1 step", "ode:model"),
                ("One-Forcing, 1 step (EMA)", "ema one_forcing:generator"),
                ("One-Forcing, 1 step", "one_forcing:generator"),
            ),
            "videos": 12,
        },
    }
    c.stages, c.run = stages, tuple(stages)
    return c

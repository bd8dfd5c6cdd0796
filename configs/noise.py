"""The smallest networks on a store of noise: a run that starts in seconds and learns nothing.

It serves the tests of the trainer and tools/kill_test.py, which writes the store.
"""

import runpy
from pathlib import Path

from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.setup.config import section
from oneforcing_jax.training.optim import Optimiser

BASE = runpy.run_path(str(Path(__file__).with_name("base.py")))


def get_config():
    c, train = BASE["get_config"](), BASE["train_stage"]
    c.mesh.update({"data": -1, "fsdp": 1})
    c.latents = {"frames": 2, "channels": 2, "rows": 4, "columns": 4}
    size = WanConfig(
        dim=16, ffn_dim=16, num_heads=2, num_layers=1, in_dim=2, out_dim=2, text_dim=8, text_len=8,
        freq_dim=8,
    )  # fmt: skip
    c.generator = c.teacher = c.critic = section(size)
    c.head = {"layers": (0,), "ffn_dim": 16}
    c.one_forcing.gradient_blocks = 0
    c.one_forcing.generator_every = 2
    c.prompt_drop_rate = 0.1
    rule = section(Optimiser(learning_rate=1e-3, beta1=0.9))
    ema = {"decay": 0.9, "start": 2}
    nets = dict.fromkeys(("generator", "critic", "teacher"), "random")
    c.stages = {
        "teacher": train("teacher", "noise", 8, 8, {"model": rule}, {"model": "random"}, ema=ema),
        "one_forcing": train(
            "one_forcing", "noise", 8, 8, {"generator": rule, "critic": rule}, nets, ema=ema
        ),
    }
    for stage in c.stages.values():
        stage.checkpoint_every = 3
    c.run = ("one_forcing",)
    return c

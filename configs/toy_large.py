"""The toy's world on one GPU: 64x64 pixels, 24 frames, a larger network and more of everything.

    python -m oneforcing_jax.main --config=configs/toy_large.py --workdir=runs/toy_large

Shapes cross the frame and turn back several times. The sizes are a proposal: no GPU was at hand to train it.
"""

import dataclasses
import runpy
from pathlib import Path

TOY = runpy.run_path(str(Path(__file__).with_name("toy.py")))
WORLD = dataclasses.replace(TOY["OPEN"], size=64, frames=24, speed=4.0, radius=12.0)


def get_config():
    c = TOY["get_config"]()
    c.world = dataclasses.asdict(WORLD)
    c.latents = {"frames": 24, "channels": 12, "rows": 16, "columns": 16}
    size = {"dim": 384, "ffn_dim": 1536, "num_heads": 6, "num_layers": 12, "rope_theta": 100.0}
    for net in ("generator", "teacher", "critic"):
        c[net].update(size)
    c.head = {"layers": (8, 11), "ffn_dim": 768}
    c.evaluation.long = 72
    c.stages.world.update({"count": 9600, "codec_videos": 256, "judge_iterations": 2000})
    for name, iterations, batch in (
        ("teacher", 20000, 64),
        ("teacher_forcing", 5000, 32),
        ("ode", 3000, 32),
        ("one_forcing", 2000, 32),
    ):
        c.stages[name].update({"iterations": iterations, "batch": batch})
        if "model" in c.stages[name].optimisers:
            c.stages[name].optimisers.model.update({"decay": iterations, "learning_rate": 1e-3})
    c.stages.ode_pairs.update({"count": 2048, "batch": 64})
    c.stages.one_forcing.samples.every = 500
    return c

"""A run of the toy that nobody trained, as small as its family allows, and finished as far as it can be seen.

python tests/demo_run.py FOLDER
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from oneforcing_jax import methods
from oneforcing_jax.families import encoders
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup.run import Run
from oneforcing_jax.sharding import unbox
from oneforcing_jax.system import checkpoint
from oneforcing_jax.toy import codec, text, world
from oneforcing_jax.toy import encoders as toy

SIZES = {"dim": 24, "ffn_dim": 32, "num_heads": 2, "num_layers": 1}
SCORES = {"real": {"joint": 0.97}, "One-Forcing, 1 step (EMA)": {"joint": 0.25, "drift": 1.5}}


def make(folder: Path, *changes: str) -> Path:
    """Writes weights, their encoders, metrics and a report."""
    overrides = [f"--config.generator.{name}={size}" for name, size in SIZES.items()]
    run = Run.of(configs.load("toy", [*overrides, *(f"--config.{change}" for change in changes)]))
    stage = folder / "one_forcing"
    stage.mkdir(parents=True)
    for place in (stage, folder):
        (place / "config.json").write_bytes(run.record)
    net, rng = methods.make("one_forcing", run).nets["generator"].model, np.random.default_rng(0)
    shapes = unbox(jax.eval_shape(net.init, jax.random.key(0)))
    params = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), shapes)
    with checkpoint.manager(stage / "checkpoints") as manager:
        zero = jax.tree.map(np.zeros_like, params)
        state = {"params": {"generator": zero}, "ema": {"generator": params}}
        checkpoint.save(manager, 20, state)
    rows = [{"iteration": n, "rates/seconds_per_iteration": 0.5} for n in (10, 20)]
    (stage / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    seen = world.World(**run.sections["world"])
    frames = np.concatenate([video for _, video in world.videos(40, 0, seen)])
    words = text.TextEncoder.train(seen.captions())
    (folder / "world" / "store").mkdir(parents=True)
    toy.save(folder / "world", codec.fit(frames), words)
    encoders.record(folder / "world" / "store", folder / "world")
    (folder / "report").mkdir()
    (folder / "report" / "scores.json").write_text(json.dumps(SCORES))
    return folder


if __name__ == "__main__":
    make(Path(sys.argv[1]))

"""Any config at the smallest size, on noise: whether it runs at all, within a minute on a laptop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from oneforcing_jax import methods
from oneforcing_jax.data.store import NEGATIVE_TEXT, Store
from oneforcing_jax.setup.run import Run
from oneforcing_jax.training.sources import RANDOM
from oneforcing_jax.training.train import trained

# The store of noise in the work directory.
STORE = "noise"
ITERATIONS = 2


def shrink(config: ConfigDict) -> None:
    """Makes networks, clips and stages tiny, in place; what does not cost anything stays as it is.

    Sections are known by their fields: a transformer has `num_heads`, a head `layers`. Only training stages
    are left, and each trains on noise and from random networks.
    """
    blocks = config.blocks
    frames = (blocks.first_frames or blocks.frames) + blocks.frames
    config.latents.update({"frames": frames, "channels": 2, "rows": 4, "columns": 4})
    sections = [value for value in config.values() if isinstance(value, ConfigDict)]
    heads = [section for section in sections if "layers" in section]
    layers = max((len(head.layers) for head in heads), default=1)
    for head in heads:
        head.update({"layers": tuple(range(len(head.layers))), "ffn_dim": 16})
    size = {"dim": 16, "ffn_dim": 16, "num_heads": 2, "num_layers": layers}
    size |= {"in_dim": 2, "out_dim": 2, "text_dim": 8, "text_len": 8, "freq_dim": 8}
    for section in sections:
        if "num_heads" in section:
            section.update(size)
        if "gradient_blocks" in section:
            section.gradient_blocks = min(section.gradient_blocks, 1)
    config.run = tuple(name for name in config.run if config.stages[name].kind == "train")
    # Also those that do not run yet: what a command line sets, such as `run`, comes after.
    for stage in config.stages.values():
        if stage.kind != "train":
            continue
        parts = 2 if stage.microbatch else 1
        stage.microbatch = jax.device_count() if stage.microbatch else 0
        stage.update({"data": STORE, "iterations": ITERATIONS})
        stage.update({"batch": parts * jax.device_count()})
        stage.init.update(dict.fromkeys(stage.init, RANDOM))
        stage.samples.every = 0


def write_noise(folder: Path, fields: Mapping[str, tuple[int, ...]], count: int = 24) -> Store:
    """A store of normal noise in the given shapes; does nothing where it is there."""
    store = Store.create(folder, count, {name: (s, "float32") for name, s in fields.items()})
    rng, done = np.random.default_rng(0), store.done()
    for i in range(count):
        sample = {name: rng.standard_normal(s, np.float32) for name, s in fields.items()}
        if not done[i]:
            store.write(i, sample)
    store.write_shared(NEGATIVE_TEXT, np.zeros(fields["text"], np.float32))
    return store


def write_data(run: Run, workdir: Path) -> None:
    """The store that all stages of a shrunk config read."""
    fields: dict[str, tuple[int, ...]] = {}
    for name, stage in trained(run).items():
        if name in run.run:
            fields |= methods.make(stage.method, run).fields
    write_noise(workdir / STORE, fields)

"""Training data of noise, for tests that train what lies outside the package."""

import numpy as np

from oneforcing_jax.data.store import NEGATIVE_TEXT, Store
from oneforcing_jax.toy import codec, encoders, text


def write_noise(folder, shapes):
    """Toy encoders in a new folder, and in its `store` 16 samples of noise that know them.

    Args:
      folder: is made.
      shapes: of the fields of a sample, by name; latents have 3 channels, prompts 8 words of width 8.
    """
    folder.mkdir()
    rng = np.random.default_rng(0)
    fitted = codec.fit(rng.integers(0, 256, (8, 16, 16, 3), np.uint8), channels=3)
    encoders.save(folder, fitted, text.TextEncoder.train(["a red square"], 8, 8))
    store = Store.create(folder / "store", 16, {n: (s, "float32") for n, s in shapes.items()})
    for i in range(16):
        store.write(i, {n: rng.standard_normal(s, np.float32) for n, s in shapes.items()})
    store.write_shared(NEGATIVE_TEXT, np.zeros((8, 8), np.float32))
    encoders.encoders.record(store.path, folder)

"""A small network that knows the toy world: its features are what the Fréchet distance compares.

It learns on rendered videos to say colour, shape, direction and place, and how far one was spoilt: blurred,
noisy, blended with another, dark, stopped. So its features see both what is shown and how well.
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.system import bounded
from oneforcing_jax.system.files import write_whole
from oneforcing_jax.toy import readings, world
from oneforcing_jax.toy.world import World

FILE = "judge.npz"
CHANNELS = (3, 24, 48, 64)
WIDTH = 64
FAULTS = ("blur", "noise", "blend", "still", "dim")
VIDEOS, BATCH, RATE = 768, 24, 2e-3
# Deviation of the noise; weight of the error of a fault, which is small beside the other losses.
NOISE, WEIGHT = 0.1, 20.0
AT_ONCE = 64
# Least unit of a feature, as a part of their mean.
LEAST = 0.2

Weights = dict[str, Any]


class Truth(NamedTuple):
    """What is known of rendered videos: words [n, 3] by their positions, places [n, 2] in -1..1."""

    words: np.ndarray
    place: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """The trained network.

    Attributes:
      weights: float32 arrays by name.
    """

    weights: Weights

    def features(self, videos: np.ndarray) -> np.ndarray:
        """float64 [n, WIDTH] of videos, uint8 [n, f, y, x, 3], of two frames or more.

        Their unit is the deviation over rendered videos.
        """
        parts = [
            _features(self.weights, jnp.asarray(videos[i : i + AT_ONCE]) / 255.0)
            for i in range(0, len(videos), AT_ONCE)
        ]
        return (
            np.concatenate([np.asarray(part, np.float64) for part in parts]) / self.weights["unit"]
        )

    def save(self, path: Path) -> None:
        """Writes one .npz file."""
        content = io.BytesIO()
        np.savez(content, **self.weights)
        write_whole(path, content.getvalue())


def load(path: Path) -> Judge:
    """Reads what `Judge.save` wrote.

    Raises:
      MissingInput: there is no such file.
      InputError: the file is no judge.
    """
    if not path.is_file():
        raise MissingInput(f"no judge at {path}; the toy's stage of a world makes it")
    try:
        weights = bounded.arrays(path)
        if weights.keys() != {*jax.eval_shape(lambda: _weights(jax.random.key(0), 8, 1)), "unit"}:
            raise ValueError
    except (OSError, ValueError):
        raise InputError(
            f"{path}: expected a judge (.npz), found another file; remove it and run again"
        ) from None
    return Judge(weights)


def train(of: World, iterations: int) -> Judge:
    """Trains the judge of a world, always the same one."""
    captions, videos = zip(*world.videos(VIDEOS, 1, of), strict=True)
    clips = np.stack(videos)
    read = readings.read(clips, of)
    words = np.stack([read.colour, read.shape, read.direction], 1)
    truth = Truth(np.maximum(words, 0), read.scene[:, -4:-2] / of.size * 2 - 1)
    key = jax.random.key(0)
    sizes = (len(of.colours), len(of.shapes), len(of.directions))
    weights = _weights(key, of.size, sum(sizes) + 2 + len(FAULTS))
    optimiser = optax.adam(optax.cosine_decay_schedule(RATE, iterations))
    state = optimiser.init(weights)

    @jax.jit
    def step(weights: Weights, state: Any, key: jax.Array, clips: jax.Array, truth: Truth) -> Any:
        grads = jax.grad(_loss)(weights, key, clips / 255.0, truth, sizes)
        updates, state = optimiser.update(grads, state)
        return optax.apply_updates(weights, updates), state

    rng = np.random.default_rng(0)
    for i in tqdm(range(iterations), desc="judge", unit="it", mininterval=1.0):
        at = rng.integers(0, VIDEOS, BATCH)
        some = Truth(truth.words[at], truth.place[at])
        weights, state = step(weights, state, jax.random.fold_in(key, i), clips[at], some)
    weights = jax.tree.map(np.asarray, weights)
    deviation = Judge(weights | {"unit": 1.0}).features(clips).std(0)
    # What hardly ever answers has no say, however little it deviates.
    return Judge(weights | {"unit": np.maximum(deviation, LEAST * deviation.mean())})


def _weights(key: jax.Array, size: int, outputs: int) -> Weights:
    shapes = {f"conv{i}": (16 * CHANNELS[i], CHANNELS[i + 1]) for i in range(len(CHANNELS) - 1)}
    cells = (size + 7) // 8  # of the third convolution of stride 2
    shapes |= {"frame": (cells * cells * CHANNELS[-1], WIDTH)}
    shapes |= {"pair": (2 * WIDTH, WIDTH), "out": (WIDTH, outputs)}
    made: Weights = {}
    for (name, shape), own in zip(shapes.items(), jax.random.split(key, len(shapes)), strict=True):
        scale = (2 / np.prod(shape[:-1])) ** 0.5
        made[name] = scale * jax.random.normal(own, shape)
        made[f"{name}_bias"] = jnp.zeros(shape[-1])
    del made["out_bias"]
    return made


@jax.jit
def _features(weights: Weights, clips: jax.Array) -> jax.Array:
    """[n, WIDTH] of clips float [n, f, y, x, 3] in 0..1."""
    n, f = clips.shape[:2]
    x = clips.reshape(n * f, *clips.shape[2:])
    for i in range(len(CHANNELS) - 1):
        x = jax.nn.relu(_cells(x) @ weights[f"conv{i}"] + weights[f"conv{i}_bias"])
    frames = jax.nn.relu(x.reshape(n, f, -1) @ weights["frame"] + weights["frame_bias"])
    pairs = jnp.concatenate([frames[:, :-1], frames[:, 1:]], -1)
    return jax.nn.relu(pairs @ weights["pair"] + weights["pair_bias"]).mean(1)


def _cells(x: jax.Array) -> jax.Array:
    """Each second place with its neighbours: [n, y, x, c] to [n, y/2, x/2, 16 c], rounded up."""
    wide = jnp.pad(x, ((0, 0), (1, 3), (1, 3), (0, 0)))
    rows, columns = ((size + 1) // 2 for size in x.shape[1:3])
    parts = [
        wide[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2] for i in range(4) for j in range(4)
    ]
    return jnp.concatenate(parts, -1)


def _loss(
    weights: Weights, key: jax.Array, clips: jax.Array, truth: Truth, sizes: tuple[int, ...]
) -> jax.Array:
    spoilt, faults = _spoil(key, clips)
    out = _features(weights, spoilt) @ weights["out"]
    ends = np.cumsum(sizes)
    *words, rest = jnp.split(out, ends, axis=-1)
    loss = jnp.square(rest[:, :2] - truth.place).mean()
    loss += WEIGHT * jnp.square(rest[:, 2:] - faults).mean()
    for i, word in enumerate(words):
        loss += optax.softmax_cross_entropy_with_integer_labels(word, truth.words[:, i]).mean()
    return loss


def _spoil(key: jax.Array, clips: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Clips spoilt, half of them not, and how much of each fault they have, [n, faults] in 0..1."""
    which, much, grain = jax.random.split(key, 3)
    n = len(clips)
    fault = jax.random.randint(which, (n,), 0, 2 * len(FAULTS))
    amount = jax.random.uniform(much, (n,))
    faults = jax.nn.one_hot(fault, len(FAULTS)) * amount[:, None]
    blur, noise, blend, still, dim = faults.T[..., None, None, None, None]
    blurred = clips
    for axis in (2, 3):
        blurred = (jnp.roll(blurred, 1, axis) + blurred + jnp.roll(blurred, -1, axis)) / 3
    clips = clips + blur * (blurred - clips)
    clips = clips + noise * NOISE * jax.random.normal(grain, clips.shape)
    clips = clips + 0.5 * blend * (jnp.roll(clips, 1, 0) - clips)
    clips = (clips + still * (clips[:, :1] - clips)) * (1 - dim)
    return jnp.clip(clips, 0, 1), faults

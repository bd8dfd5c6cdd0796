"""Every field of a config, set to what it should not be: accepted, or refused in one line that names it."""

import random

import pytest

from oneforcing_jax.errors import InputError
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup import ranges, stages
from oneforcing_jax.setup.run import Run

VALUES = [
    float("nan"), float("inf"), -1, -0.5, 0, 1, 3, 10**12, 2**64, 1e-300, 1e300, "x", "", True, None, (),
    (0,), (-1,), ("a",), {"a": 1},
]  # fmt: skip
SAMPLES = 150


def put(config, name, value):
    *path, last = name.split(".")
    for part in path:
        config = config[part]
    with config.ignore_type():
        config[last] = value


@pytest.mark.parametrize("file", ["configs/toy.py", "configs/noise.py"])
def test_every_field_is_checked_before_anything_runs(file):
    names = [name for name, _ in configs.fields(configs.load(file))]
    cases = [(name, value) for name in names for value in VALUES]
    refused = 0
    for name, value in random.Random(0).sample(cases, SAMPLES):
        config = configs.load(file, (), lambda c, n=name, v=value: put(c, n, v))
        try:
            stages.prepare(Run.of(config))
        except InputError as error:
            refused += 1
            assert "\n" not in str(error), (name, value)
    assert refused > SAMPLES / 2


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (ranges.Positive, (1e-9, 5.0), (0.0, -1.0, float("nan"), float("inf"), 1e300, 1e-300)),
        (ranges.NotNegative, (0.0, 2.0), (-1e-9, float("nan"))),
        (ranges.Share, (0.0, 0.5, 1.0), (-0.1, 1.1, float("nan"))),
        (ranges.Decay, (0.0, 0.99), (1.0, 2.0, -0.5)),
        (ranges.Count, (1, 2**31 - 1), (0, -3, 2**31)),
        (ranges.Natural, (0, 7), (-1, 2**40)),
        (ranges.Seed, (0, 2**32 - 1), (-1, 2**32)),
        (ranges.Quality, (0, 51), (-1, 52)),
        (tuple[ranges.Count, ...], ((1, 2),), ((1, 0),)),
        (ranges.Count | None, (None, 4), (0,)),
        (float, (-3.0,), (float("nan"), float("-inf"))),
    ],
)
def test_ranges(kind, good, bad):
    assert not any(ranges.wrong(kind, value) for value in good)
    assert all(ranges.wrong(kind, value) for value in bad)

"""Curvature of trajectories: the equation, its summary, and the command on checkpoints of both kinds."""

import json
import runpy
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from oneforcing_jax import flow, methods
from oneforcing_jax.evaluation import curvature
from oneforcing_jax.generation import samplers
from oneforcing_jax.models import wan
from oneforcing_jax.models.condition import prompted
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup.run import Run
from oneforcing_jax.system import checkpoint
from oneforcing_jax.training import tiny

ROOT = Path(__file__).parents[1]
TIMES = flow.grid(12, 5.0)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_straight_line_has_none_and_a_parabola_has_its_own():
    noise, clip, bend = normal(0, 2, 3, 1, 2, 2), normal(1, 2, 3, 1, 2, 2), normal(2, 2, 3, 1, 2, 2)
    line = np.stack([(1 - t) * clip + t * noise for t in TIMES], 1)
    assert curvature.profile(line, TIMES).max() < 1e-9
    # x_t = line + t (1 - t) b: the velocity of a step from t to s differs from the chord by (1 - t - s) b.
    found = curvature.profile(line + np.stack([t * (1 - t) * bend for t in TIMES], 1), TIMES)
    per_clip = np.square(bend).reshape(2, -1).mean(1)
    expected = [per_clip * (1 - t - s) ** 2 for t, s in zip(TIMES[:-1], TIMES[1:], strict=True)]
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=2e-3, atol=1e-6)
    still = np.repeat(normal(3, 1, 13, 1, 1, 2, 2), 4, 2)
    assert not curvature.profile(curvature.differences(still), TIMES).any()


def test_shares_ratios_and_intervals():
    at = TIMES[:-1]
    profiles = np.where(at >= 0.9, 3.0, 1.0) * np.array([[1.0], [2.0], [5.0]])
    high = (at >= 0.9).sum()
    np.testing.assert_allclose(
        curvature.high_share(profiles, TIMES), 3 * high / (3 * high + len(at) - high)
    )
    np.testing.assert_allclose(curvature.high_to_middle(profiles, TIMES), 3.0)
    draws = np.random.default_rng(0).normal(5.0, 2.0, 400)
    found = curvature.interval(draws)
    assert abs(found["standard_error"] - 0.1) < 0.01 and abs(found["mean"] - draws.mean()) < 1e-9
    width = (found["high"] - found["low"]) / 2
    assert abs(width - 1.96 * found["standard_error"]) < 0.02
    with pytest.raises(ValueError, match="expected steps at t >= 0.9 and in"):
        curvature.summary(profiles[:, :1], TIMES[[0, -1]])
    with pytest.raises(ValueError, match="a falling noise level for each of 3 states, found 2"):
        curvature.profile(normal(0, 1, 3, 2, 1, 1, 1), TIMES[:2])


def test_states_of_a_sampler_end_where_it_ends(random_params):
    config = wan.WanConfig(16, 16, 2, 1, in_dim=2, out_dim=2, text_dim=8, text_len=8, freq_dim=8)
    net = wan.model(config)
    noise, text = jnp.asarray(normal(0, 1, 2, 2, 4, 4)), jnp.asarray(normal(1, 1, 8, 8))
    table = samplers.unipc(samplers.wan_grid(4, 3.0))
    given = (net, random_params(net), noise, prompted(text), prompted(jnp.zeros((8, 8))), table)
    end, way = (samplers.sample(*given, guidance=2.0, states=s) for s in (False, True))
    assert way.shape == (1, 5, 2, 2, 4, 4)
    np.testing.assert_array_equal(way[:, 0], given[2])
    np.testing.assert_allclose(way[:, -1], end, rtol=1e-5, atol=1e-5)


def trained(folder, random_params, causal):
    """A stage of a run on noise, as training would leave it, with random weights."""
    config = configs.load(ROOT / "configs" / "noise.py")
    run = Run.of(config)
    method = methods.make("teacher", run)
    tiny.write_noise(folder / "noise", method.fields, 4)
    net = method.nets["model"].model
    with checkpoint.manager(folder / "teacher" / checkpoint.FOLDER) as manager:
        checkpoint.save(manager, 1, {"params": {"model": random_params(net)}})
    (folder / "teacher" / checkpoint.CONFIG).write_text(run.text)
    return folder / "teacher"


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_the_command_measures_draws_and_continues(causal, tmp_path, random_params, capsys):
    path = trained(tmp_path, random_params, causal)
    out, main = (
        tmp_path / "report.json",
        runpy.run_path(str(ROOT / "tools" / "curvature.py"))["main"],
    )
    given = [f"--checkpoint={path}", f"--store={tmp_path / 'noise'}", f"--out={out}", "--batch=2"]
    given += ["--sampling_steps=12", "--clips=3", *(["--causal"] if causal else [])]
    main(given)
    whole = json.loads(out.read_text())
    assert {len(whole["profiles"][kind]) for kind in curvature.KINDS} == {3}
    assert "of the curvature at t >= 0.9" in capsys.readouterr().out
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    # What a kill after the first batch leaves goes on to the same end.
    half = whole | {"profiles": {kind: rows[:2] for kind, rows in whole["profiles"].items()}}
    out.write_text(json.dumps(half))
    main(given)
    assert json.loads(out.read_text()) == whole
    with pytest.raises(SystemExit, match="expected nothing or a report of"):
        main([*given, "--seed=5"])

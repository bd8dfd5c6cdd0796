"""The comparison with the original, as far as it goes without it: sizes, ratios, errors, our side."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from goldens import dump

from oneforcing_jax import flow, methods
from oneforcing_jax.bench import ours
from oneforcing_jax.bench.setting import Record, Setting, random_batch
from oneforcing_jax.causal.plan import ClipDraws
from oneforcing_jax.convert import keys, to_torch
from oneforcing_jax.families.wan21 import WAN_1_3B, WAN_14B
from oneforcing_jax.methods import distillation
from oneforcing_jax.setup.run import Run
from oneforcing_jax.training import train

ROOT = Path(__file__).parents[1]
TOOL = runpy.run_path(str(ROOT / "tools" / "compare_original.py"))


def test_a_missing_clone_is_one_line(tmp_path):
    expected = (
        r"^error: --original: expected a clone of github.com/Aurora-edu/One-Forcing, found no "
    )
    with pytest.raises(SystemExit, match=expected + r"model/one_forcing.py in \S+; run git clone"):
        TOOL["main"]([f"--original={tmp_path / 'nothing'}"])
    for name in TOOL["NEEDED"][:-1]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with pytest.raises(SystemExit, match=expected + "chunkwise_config.yaml"):
        TOOL["main"]([f"--original={tmp_path}"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--repeats=0", "repeats: expected 1 or more, found 0"),
        ("--cores=1000", "cores: expected 0 to .*, found 1000"),
        ("--dim=100", "dim: expected a multiple of 128, found 100"),
        ("--layers=1", "layers: expected 2 or more, found 1"),
        ("--rows=3", "expected even sides, found 3x12"),
    ],
)
def test_odd_arguments_are_one_line(argument, message, tmp_path):
    for name in TOOL["NEEDED"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(SystemExit, match=message):
        TOOL["main"]([f"--original={tmp_path}", argument])


def test_ratios_are_of_medians():
    times = {
        "original": {"generator": [8.0, 9.0, 100.0], "critic": [4.0] * 3, "rollout": [3.0] * 3},
        "ours": {"generator": [3.0, 3.0, 4.0], "critic": [2.0] * 3, "rollout": [0.5] * 3},
    }
    rows = {row["work"]: row for row in TOOL["summary"](times)}
    assert [rows[work]["ratio"] for work in ("generator", "critic", "rollout")] == [3, 2, 6]
    assert (rows["generator"]["least"], rows["generator"]["greatest"]) == (8 / 3, 25)
    assert rows["iteration"]["original_s"] == pytest.approx(4 + 9 / 5)
    assert rows["iteration"]["ours_s"] == pytest.approx(2 + 3 / 5)
    text = TOOL["table"](list(rows.values())).splitlines()
    assert len(text) == 5
    assert text[2].split() == ["critic", "4.000", "2.000", "2.00", "2.00", "2.00"]


def test_a_setting_of_the_published_width_has_the_published_sizes():
    setting = Setting(dim=1536, layers=30, rows=60, columns=104)
    student, teacher = setting.student_sizes(), setting.teacher_sizes()
    for found, model in ((student, WAN_1_3B), (teacher, WAN_14B)):
        for field, value in found.items():
            assert value == pytest.approx(getattr(model, field), rel=0.04), field
    assert setting.tapped() == (21, 29) and setting.head_ffn() == 2048
    chunkwise = Setting("chunkwise", dim=1536, layers=30)
    assert chunkwise.tapped() == (29,) and chunkwise.head_ffn() == 512


@pytest.mark.parametrize(("layout", "blocks"), [("framewise", 21), ("chunkwise", 7)])
def test_our_side_is_the_published_config_at_the_sizes_given(layout, blocks):
    setting = Setting(layout, dim=128, layers=2, rows=4, columns=4)
    config = ours.configuration(setting)
    method = methods.make("one_forcing", Run.of(config))
    assert len(method.sampled.plan) == blocks
    assert {net.config.dim for net in method.nets.values()} == {128, 384}
    assert method.nets["generator"].config.remat == method.nets["critic"].config.remat == "full"
    assert random_batch(setting)["latents"].shape == (1, 21, 16, 4, 4)
    assert config.stages.one_forcing.optimisers.generator.beta1 == 0


def torch_like(key_map, tree):
    whole = {key: keys.get(tree, leaf.path).shape for key, leaf in key_map.items()}
    shapes = {key: to_torch.torch_shape(key, key_map[key], shape) for key, shape in whole.items()}
    return dump(key_map, tree, shapes)


@pytest.mark.long
def test_our_side_repeats_a_recorded_update():
    """What the original drew, in its order, goes to the terms of the loss that it was drawn for."""
    setting = Setting("chunkwise", dim=128, layers=2, rows=2, columns=2, teacher="same")
    config, maps = ours.configuration(setting), ours.key_maps(setting)
    run = Run.of(config)
    trainer = train.trainer(
        run, "one_forcing", train.trained(run)["one_forcing"], jax.devices()[:1]
    )
    nets = {name: trainer.init_net(name) for name in maps}
    side = ours.Ours(setting, {name: torch_like(maps[name], net) for name, net in nets.items()})

    batch, timesteps = random_batch(setting), [np.float32([300]), np.float32([700])]
    start, context, *noises = np.random.default_rng(1).standard_normal((6, *setting.latents))
    sigmas = [flow.critic_sigma(x, config.shift) for x in timesteps]
    draws = distillation.CriticDraws(
        ClipDraws(start, context), sigmas[0], noises[0], sigmas[1], *noises[1:]
    )
    update = {u.net: u for u in trainer.method.updates}["critic"]

    def loss(params):
        return update.loss(params, nets, batch, draws)[0]

    value, gradients = jax.jit(jax.value_and_grad(loss))(nets["critic"])
    blocks = [x.reshape(-1, *x.shape[2:]) for x in np.split(context, 7, axis=1)]
    normals = [start, *blocks, *noises]
    record = Record(batch, timesteps, normals, float(value), torch_like(maps["critic"], gradients))
    found = side.check("critic", record)
    assert found["our_loss"] == pytest.approx(found["original_loss"], rel=1e-5)
    assert found["gradient_distance"] < 1e-4

"""The benchmark's count of operations, and its command line."""

import json
import runpy
from pathlib import Path

import pytest

from oneforcing_jax import config as configs
from oneforcing_jax import methods
from oneforcing_jax.causal import flops
from oneforcing_jax.models.wan import WAN_1_3B, WAN_14B
from oneforcing_jax.run import Run

ROOT = Path(__file__).parents[1]
BENCH = runpy.run_path(str(ROOT / "tools" / "bench.py"))
TOKENS = WAN_1_3B.frame_tokens(60, 104)


@pytest.mark.parametrize(("size", "expected"), [(WAN_1_3B, 283), (WAN_14B, 1678)])
def test_forward_of_a_clip(size, expected):
    found = flops.clip(size, TOKENS, 21).forward / 1e12
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("keys", "expected"), [(1, 4.5), (11, 9.0), (21, 13.5)])
def test_cached_pass_of_a_frame(keys, expected):
    found = flops.dit(WAN_1_3B, TOKENS, 1, keys, prompts=0).forward / 1e12
    assert found == pytest.approx(expected, rel=0.01)


def work(net, *overrides, config="framewise", method="one_forcing"):
    """Of one sample's update."""
    run = Run.of(configs.load(ROOT / "configs" / f"{config}.py", overrides))
    return next(u.work for u in methods.make(method, run).updates if u.net == net)


@pytest.mark.parametrize(("net", "expected"), [("critic", 3773), ("generator", 5831)])
def test_updates_of_the_paper(net, expected):
    """With all that is computed again; without, a model's operations are a quarter of each backward less."""
    full = [f"--config.{part}.remat=full" for part in ("generator", "critic")]
    hardware, model = work(net, *full).hardware, work(net, *full).model
    assert hardware / 1e12 == pytest.approx(expected, rel=0.03)
    assert model < work(net).hardware < hardware
    assert 0.75 * expected < model / 1e12 < 0.95 * expected
    for remat, counted in (("offload", True), ("none", False)):
        changed = [f"--config.{part}.remat={remat}" for part in ("generator", "critic")]
        found = work(net, *changed).hardware
        assert found == (pytest.approx(expected * 1e12, rel=0.03) if counted else model)


SMALL = [
    "--config.latents.frames=2",
    "--config.latents.rows=4",
    "--config.latents.columns=4",
    *(
        f"--config.{net}.{field}"
        for net in ("generator",)
        for field in ("dim=16", "ffn_dim=16", "num_heads=2", "num_layers=1")
    ),
]


def test_command_line(tmp_path, capsys):
    out, toy = tmp_path / "bench.json", ROOT / "configs" / "toy.py"
    stage = ["--stage=ode", "--config.stages.ode.batch=8"]
    rule = "--config.stages.ode.optimisers.model.name=adamw"
    BENCH["main"](["train", f"--config={toy}", *stage, *SMALL, rule, "--repeats=2", f"--out={out}"])
    made, printed = json.loads(out.read_text()), capsys.readouterr().out
    row, *data = made["work"]
    assert row["work"] == "model update" and "TFLOP/s" in printed
    assert len(data) == 2 and all(part["step_s"] > 0 for part in data)
    for field in ("compile_s", "first_s", "step_s", "flops", "flops_per_s", "memory_bytes"):
        assert row[field] > 0, field
    assert row["flops_per_s"] == pytest.approx(row["flops"] / row["step_s"])
    assert made["mean_iteration_s"] == row["step_s"]


@pytest.mark.parametrize("method", ["teacher", "teacher_forcing", "causal_ode"])
def test_depth_multiplies(method):
    """Each further layer costs the same."""
    net = "teacher" if method == "teacher" else "generator"
    layers = [f"--config.{net}.num_layers={n}" for n in (1, 2, 3)]
    one, two, three = (work("model", n, config="toy", method=method).model for n in layers)
    assert three - two == pytest.approx(two - one) and two - one > 0


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--stage=world", "expected one of .*'one_forcing'.*found 'world'"),
        ("--repeats=0", "repeats: expected 1 or more, found 0"),
        ("--config.sed=3", "no field 'sed'; did you mean 'seed'"),
    ],
)
def test_odd_arguments_are_one_line(argument, message):
    with pytest.raises(SystemExit, match=message):
        BENCH["main"](["train", f"--config={ROOT / 'configs' / 'toy.py'}", argument])


@pytest.mark.long
def test_vae(tmp_path, capsys):
    sizes = ["--frames=9", "--rows=16", "--columns=16", "--width=2", "--dtype=float32"]
    BENCH["main"](["vae", *sizes, "--repeats=1", f"--out={tmp_path / 'vae.json'}"])
    rows = {row["work"]: row for row in json.loads((tmp_path / "vae.json").read_text())["work"]}
    assert (
        rows.keys() == {"encode", "decode", "stream step"} and "frames/s" in capsys.readouterr().out
    )
    # Two of the three latent frames are later steps.
    first = rows["decode"]["flops"] - 2 * rows["stream step"]["flops"]
    assert 0 < first < rows["stream step"]["flops"]
    with pytest.raises(SystemExit, match="1 . a multiple of 4 frames"):
        BENCH["main"](["vae", *sizes, "--frames=8"])


def test_reading_data(tmp_path, capsys):
    given = ["data", f"--store={tmp_path / 'store'}", "--batch=2", "--batches=2", "--every=0.2"]
    BENCH["main"]([*given, "--fill=2", f"--out={tmp_path / 'data.json'}"])
    made, printed = json.loads((tmp_path / "data.json").read_text()), capsys.readouterr().out
    assert made["samples"] == 2 and 0 < made["samples_per_s"] <= 2 / 0.2
    assert 0 < made["wait_s"] <= made["longest_wait_s"] and "2 samples, opened in" in printed
    with pytest.raises(SystemExit, match="every: expected 0 to 3600 seconds, found -1.0"):
        BENCH["main"]([*given, "--every=-1"])
    with pytest.raises(SystemExit, match="no store at"):
        BENCH["main"](["data", f"--store={tmp_path / 'absent'}"])


def test_generation_by_the_command_line(tmp_path, capsys):
    """Every part of a video is timed."""
    out = tmp_path / "bench.json"
    toy = [f"--config={ROOT / 'configs' / 'toy.py'}", *SMALL, "--config.latents.frames=3"]
    BENCH["main"](["generate", *toy, "--repeats=1", "--first_steps=1000", f"--out={out}"])
    made, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert made["frames"] == 3 and made["blocks"] == [[1, 1]] * 3
    for name in ("first_frame", "steady_block", "first_block", "decode", "diffusion", "total"):
        assert made[f"{name}_s"] > 0, name
    assert made["with_compilation_s"] > 0
    assert made["frames_per_s"] == pytest.approx(3 / made["total_s"])
    assert "frames/s" in printed and "both, overlapped" in printed
    with pytest.raises(SystemExit, match="batch: expected 1 or more, found 0"):
        BENCH["main"](["generate", *toy, "--batch=0"])
    with pytest.raises(SystemExit, match="of 16 channels, which tiny is for, found 12"):
        BENCH["main"](["generate", *toy, "--decoder=tiny"])

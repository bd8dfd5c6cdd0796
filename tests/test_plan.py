"""Plans: targets by name, programs compiled ahead for the devices of this machine, and the command line."""

import dataclasses
import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from oneforcing_jax import main, methods
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup.run import Run
from oneforcing_jax.targets import chips, forecast, measure, programs, roofline, search, topology

ROOT = Path(__file__).parents[1]
PLAN = runpy.run_path(str(ROOT / "tools" / "plan.py"))
NOISE = str(ROOT / "configs" / "noise.py")


def run(*overrides):
    """The run of a config of noise."""
    return Run.of(configs.load(NOISE, overrides))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_table_holds_for_every_chip():
    for name, chip in chips.CHIPS.items():
        assert chips.find(chip.kind) is chip, name
        assert chip.rate <= chip.peak and chip.memory > 1e10 and chip.link >= chip.network
    assert chips.find("TPU v5 lite") is chips.CHIPS["v5e"]
    text = chips.gpu_config("h200")
    assert "core_count: 132" in text and "major: 9 minor: 0" in text and text.count("{") == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h200", "expected tpu:v5p:2x2x4, .*found 'h200'"),
        ("gpu:h300:8", "expected a gpu among .*'h200'.*found 'h300'"),
        ("tpu:h200:2x2", "expected a tpu among .*found 'h200'"),
        ("gpu:h200:0", "found 'gpu:h200:0'; give sizes of 1 or more"),
        ("gpu:h200:8*2", "found 'gpu:h200:8\\*2'"),
    ],
)
def test_targets_that_there_are_not(name, message):
    with pytest.raises(ValueError, match=message):
        topology.parse(name)


def test_a_missing_compiler_names_its_extra(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"jax_cuda12_plugin, found none; pip install .*plan-gpu"):
        topology.prepare("gpu:h200:8")


@pytest.mark.parametrize(
    ("name", "said"), [("h200", "seconds: calibrated by single operations on one H200"),
                       ("b200", "seconds: not calibrated, the least")]
)  # fmt: skip
def test_a_plan_says_whether_its_seconds_are_calibrated(name, said):
    target = topology.Target(name, "cuda", chips.CHIPS[name], (None,))
    size = dict.fromkeys(("state", "resident", "temporary", "peak", "limit"), 0)
    plan = forecast.Forecast(
        "vae", "video", target, (measure.Cost("a", 1, bytes=size, predicted_s=2.0),)
    )
    assert said in forecast.table(plan) and plan.as_json()["calibrated"] == (name == "h200")
    assert ("2 s or more" in forecast.table(plan)) == (name != "h200")


def test_a_plan_of_training_here(capsys):
    out = Path("plan.json")
    arguments = ["train", f"--config={NOISE}", "--target=local", "--stage=teacher"]
    PLAN["main"]([*arguments, f"--out={out}"])
    made, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert {"target", "devices", "fits", "programs", "total"} <= made.keys()
    assert made["target"] == "local" and made["devices"] == jax.device_count() and made["fits"]
    (row,) = made["programs"]
    for key in (
        "name",
        "compile_s",
        "bytes",
        "flops",
        "hbm_bytes",
        "collective_bytes",
        "predicted_s",
    ):
        assert row[key], key
    assert row["bytes"].keys() == {"state", "resident", "temporary", "peak", "limit"}
    assert row["bytes"]["peak"] >= row["bytes"]["state"] + row["bytes"]["temporary"]
    assert row["bound"] in roofline.BOUNDS
    assert not made["calibrated"] and made["source"] == forecast.DATA_SHEET
    assert "seconds: not calibrated, the least that the data sheet allows" in printed
    assert made["total"]["predicted_s"] == row["predicted_s"]
    assert "teacher/model" in printed and "a mean iteration:" in printed and "fits" in printed
    # A plan that was made before is read, not compiled.
    PLAN["main"]([*arguments, f"--out={out}"])
    assert json.loads(out.read_text()) == made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--stage=world"], "stage: expected one of .*'one_forcing'.*found 'world'"),
        (["train", "--config.sed=3"], "no field 'sed'; did you mean 'seed'"),
        (["vae"], "expected the 16 of its family's codec, found 2"),
        (["generate"], "expected the 16 of its family's codec, found 2"),
    ],
)
def test_odd_arguments_are_one_line(arguments, message):
    what, *rest = arguments
    with pytest.raises(SystemExit, match=message):
        PLAN["main"]([what, f"--config={NOISE}", "--target=local", *rest])


def test_a_program_that_does_not_compile_is_a_row(monkeypatch):
    target = topology.find("local")
    (program,) = programs.train(run(), "teacher", target.devices)

    def broken(*arguments):
        raise NotImplementedError("no such kernel\nand more")

    program = program.__class__(**{**vars(program), "call": jax.jit(broken)})
    made = forecast.make("train", "mean iteration", target, [program], None)
    assert not made.fits and "NotImplementedError: no such kernel" in made.costs[0].error
    assert "does not compile: NotImplementedError" in forecast.table(made)
    total = made.as_json()["total"]
    assert total["predicted_s"] is None and total["model_utilisation"] is None


@pytest.mark.parametrize("remat", ["none", "full"])
def test_operations_of_a_program_are_those_of_the_shapes(remat):
    """Of a network wide enough that what is not counted from the shapes is little."""
    sizes = (
        "dim=128",
        "ffn_dim=256",
        "num_heads=4",
        "num_layers=3",
        "text_dim=32",
        f"remat={remat}",
    )
    described = run(
        *(f"--config.teacher.{size}" for size in sizes),
        "--config.latents.rows=16",
        "--config.latents.columns=16",
    )
    target = topology.find("local")
    (program,) = programs.train(described, "teacher", target.devices)
    (cost,) = measure.costs(program, target)
    work, batch = methods.make("teacher", described).updates[0].work, 8
    assert cost.model_flops == batch * work.model
    assert cost.hardware_flops == batch * work.hardware
    assert (cost.hardware_flops > cost.model_flops) == (remat == "full")
    assert cost.flops * len(target.devices) == pytest.approx(cost.hardware_flops, rel=0.03)


@pytest.mark.long
def test_a_search_prints_what_to_paste(capsys):
    PLAN["main"](["train", f"--config={NOISE}", "--target=local", "--stage=teacher", "--search=2"])
    printed = capsys.readouterr().out.splitlines()
    assert "seconds" in printed[0] and len(printed) == 5
    pasted = printed[-1].split()
    assert printed[-2] == "fastest that fits:" and "--config.mesh.fsdp=1" in pasted
    assert programs.train(run(*pasted), "teacher", topology.find("local").devices)


@pytest.mark.long
def test_settings_of_a_search():
    """Every mesh has all devices, and settings of less memory or traffic come before others."""
    for devices in (1, 8, 12):
        sizes = [tuple(mesh.values()) for mesh in search.meshes(devices)]
        assert len(set(sizes)) == len(sizes) and all(math.prod(s) == devices for s in sizes)
    target = topology.find("local")
    found = search.promising(lambda more: run(*more), "one_forcing", target)
    seconds = [setting.seconds for setting in found]
    assert seconds == sorted(seconds) and found[0].fields["mesh.data"] == jax.device_count()
    kept = {setting.fields["generator.remat"] for setting in found}
    assert kept == {"none", "full", "attention", "offload"}
    tight = dataclasses.replace(target, chip=dataclasses.replace(target.chip, memory=1000))
    with pytest.raises(ValueError, match="expected a setting of stage 'teacher' that fits local"):
        next(search.search(lambda more: run(*more), "teacher", tight, 1))


def test_a_dry_run_says_what_a_target_costs(capsys):
    """The stages of the run at hand; a run itself takes no target."""
    arguments = [f"--config={NOISE}", "--workdir=run", "--target=local"]
    main.main([*arguments, "--dry_run", "--config.run=teacher"])
    printed = capsys.readouterr().out
    assert "generator_every" in printed and "teacher/model" in printed and not Path("run").exists()
    with pytest.raises(
        SystemExit, match="expected --dry_run with --target, found --target=local alone"
    ):
        main.main(arguments)


@pytest.mark.tpu_compile
@pytest.mark.skipif(
    not topology.importlib.util.find_spec("libtpu"), reason="libtpu is not here: extra plan-tpu"
)
def test_a_plan_for_a_slice_of_tpus():
    command = [sys.executable, str(ROOT / "tools" / "plan.py"), "train", f"--config={NOISE}"]
    command += ["--stage=teacher", "--target=tpu:v5e:2x2", "--out=plan.json"]
    made = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    found = json.loads(Path("plan.json").read_text())
    assert found["devices"] == 4 and found["fits"] and found["device"] == "TPU v5 lite"
    assert found["programs"][0]["collective_bytes"] > 0


def test_nothing_looks_for_the_device_of_a_target(monkeypatch):
    """JAX is imported by then, and has read from its environment which platforms to start."""
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    try:
        topology.prepare("gpu:h200:8")
        assert jax.config.jax_platforms == os.environ["JAX_PLATFORMS"] == "cpu"
    finally:
        jax.config.update("jax_platforms", before)

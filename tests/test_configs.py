"""Config files carry the published values; the command line explains what is wrong in one line."""

import contextlib
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import pytest
from waits import HANG

from oneforcing_jax import main, methods, sharding
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup import presets
from oneforcing_jax.setup.run import Run
from oneforcing_jax.targets import topology
from oneforcing_jax.training import tiny, train

CONFIGS = sorted(p for p in Path("configs").glob("*.py") if p.stem != "base")


def test_framewise_is_table_4():
    c = configs.load("configs/framewise.py")
    run = Run.of(c)
    method = methods.make("one_forcing", run)
    generator, critic, teacher = (method.nets[n].config for n in ("generator", "critic", "teacher"))
    assert (generator.dim, generator.num_layers, generator.num_heads) == (1536, 30, 12)
    assert (critic.dim, critic.num_layers) == (1536, 30)
    assert (teacher.dim, teacher.num_layers, teacher.num_heads) == (5120, 40, 40)
    assert tuple(c.latents.values()) == (16, 104, 21, 60)  # channels, columns, frames, rows
    assert run.layout == (1,) * 21
    assert [b.sigmas for b in run.plan] == [(1.0,)] * 21
    assert (c.one_forcing.guidance, c.shift, c.one_forcing.generator_every) == (5.0, 5.0, 5)
    stage = c.stages.one_forcing
    for net in ("generator", "critic"):
        o = stage.optimisers[net]
        assert (o.name, o.learning_rate, o.beta1, o.beta2) == ("adamw", 1e-5, 0.0, 0.999)
        assert (o.weight_decay, o.clip) == (0.01, 10.0)
    assert (stage.batch, stage.iterations) == (8, 200)
    assert (stage.ema.decay, stage.ema.start, method.sampled.net) == (0.99, 50, "generator")
    assert (c.head.layers, c.head.ffn_dim) == ((21, 29), 2048)
    assert c.one_forcing.gan_generator_weight == c.one_forcing.gan_discriminator_weight == 0.03
    assert not c.one_forcing.relativistic
    assert c.one_forcing.r1.weight == c.one_forcing.r2.weight == 0.0


def test_chunkwise_values():
    c = configs.load("configs/chunkwise.py")
    assert Run.of(c).layout == (3,) * 7
    assert (c.head.layers, c.head.ffn_dim) == ((29,), 512)
    assert (c.one_forcing.r1.weight, c.one_forcing.r1.sigma, c.one_forcing.r1.form) == (
        1.0,
        0.1,
        "apt",
    )
    assert (c.one_forcing.r2.weight, c.one_forcing.r2.sigma) == (0.001, 0.01)
    assert c.one_forcing.r2.form == "finite_difference"
    assert c.stages.one_forcing.iterations == 750


# The settings of docs/method.md that make the other methods.
METHODS = {
    "causal forcing": ["gan_generator_weight=0", "gan_discriminator_weight=0"],
    "adversarial alone": ["dmd_weight=0"],
    "ASD": ["real=self"],
    "forward KL": ["forward_kl_weight=1"],
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_few_settings(name, tmp_path):
    settings = [f"--config.one_forcing.{setting}" for setting in METHODS[name]]
    if name == "causal forcing":
        settings.append("--config.blocks.steps=(1000,750,500,250)")
    if name == "ASD":
        settings.append("--config.stages.one_forcing.init.generator=causal_consistency:model")
        settings.append("--config.run=teacher_forcing,causal_consistency,one_forcing")
    main.run("configs/recipe_framewise.py", tmp_path, settings, dry_run=True)


@pytest.mark.parametrize("file", CONFIGS, ids=[file.stem for file in CONFIGS])
def test_every_config_builds(file, tmp_path):
    init = configs.load(file).stages.one_forcing.init
    unsaid = [f"--config.stages.one_forcing.init.{net}=random" for net in init if not init[net]]
    main.run(file, tmp_path, unsaid, dry_run=True)
    if unsaid:
        with pytest.raises(ValueError, match=r"init.critic': expected 'random', .*say where this"):
            main.run(file, tmp_path, dry_run=True)
    assert not list(tmp_path.iterdir())


# tests/test_toy_chain.py runs all of tiny.py, and so One-Forcing with the toy's stages; tests/test_train.py
# runs noise.py. Of the recipes, the stage that no other config has is in tests/test_baselines.py. At the
# smallest size toy_large.py is toy.py. tests/test_study.py runs chains of study.py, and tests/test_wan22.py
# all of wan22_5b_framewise.py.
RUN_ELSEWHERE = (
    "tiny", "noise", "recipe_framewise", "recipe_chunkwise", "study", "toy_large",
    "wan22_5b_framewise",
)  # fmt: skip
RUN = [f.stem for f in CONFIGS if f.stem not in RUN_ELSEWHERE]


@pytest.mark.parametrize(
    "name",
    [name if name == "framewise" else pytest.param(name, marks=pytest.mark.long) for name in RUN],
)
def test_every_config_runs_tiny(name, tmp_path, light_environment):
    file = f"configs/{name}.py"
    stages = ["--config.run=teacher,teacher_forcing,ode"] if name == "toy" else []
    command = [sys.executable, "-m", "oneforcing_jax.main", f"--config={file}", "--tiny", *stages]
    subprocess.run(
        [*command, f"--workdir={tmp_path}"], env=light_environment, check=True, timeout=HANG
    )
    config = configs.load(file, stages, tiny.shrink)
    assert config.run
    for stage in config.run:
        rows = [json.loads(line) for line in (tmp_path / stage / "metrics.jsonl").open()]
        assert rows[-1]["iteration"] == 2
        assert all(math.isfinite(value) for row in rows for value in row.values())
        assert (tmp_path / stage / "checkpoints/2").is_dir()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.batchsize=3", "no field 'batchsize'; did you mean 'stages.one_forcing.batch'"),
        ("--config.stages.one_forcing.batch=x", "expected int such as 8, found 'x'"),
        ("--config.shift=high", "expected float such as 5.0, found 'high'"),
        (
            "--config.blocks.frames=4",
            "21 frames = 4 .first block. . a multiple of 4, found 17 left",
        ),
        ("--config.latents.rows=61", "divide by the patch 2, found 61x104"),
        ("--config.run=nothing", "expected stages among .'one_forcing'., found 'nothing'"),
        ("--config.head.layers=40", r"tapped layers in \[0, 30\), found \[40\]"),
        ("--config.generator.dtype=int8", "expected one of .'bfloat16', 'float32'., found 'int8'"),
        ("--config.mesh.data=3", "product is the number of devices"),
        ("--batch=3", "expected --config.FIELD=VALUE"),
    ],
)
def test_one_clear_line(override, message, tmp_path):
    with pytest.raises((ValueError, SystemExit), match=message) as caught:
        main.main(["--config=configs/framewise.py", f"--workdir={tmp_path}", override])
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_overrides_apply():
    overrides = [
        "--config.shift=3",
        "--config.head.layers=(1,2)",
        "--config.one_forcing.relativistic=true",
    ]
    c = configs.load("configs/framewise.py", overrides)
    assert (c.shift, c.head.layers, c.one_forcing.relativistic) == (3.0, (1, 2), True)
    with pytest.raises(FileNotFoundError, match="expected a Python file"):
        configs.load("configs/absent.py")


def test_bare_names_are_ours_wherever_one_is(tmp_path, monkeypatch):
    """Also beside a folder of that name, which is a run's."""
    files = [path.absolute() for path in (*CONFIGS, Path("configs/base.py"))]
    monkeypatch.chdir(tmp_path)
    Path("toy").mkdir()
    found = {name: configs.load(name).to_json() for name in configs.ours()}
    assert found == {path.stem: configs.load(path).to_json() for path in files}
    with pytest.raises(
        FileNotFoundError, match="found nothing at configs/toy.py; ours are base, .*, toy,"
    ):
        configs.load("configs/toy.py")


def test_the_base_install_suffices():
    """What extras bring is imported where it is used: training and generation begin without."""
    extras = (
        "torch",
        "safetensors",
        "huggingface_hub",
        "transformers",
        "ftfy",
        "lmdb",
        "wandb",
        "diffusers",
    )
    program = f"import sys; sys.modules |= dict.fromkeys({extras!r})\n"
    for module in (
        "main",
        "training.train",
        "generate",
        "generation.streaming",
        "data.encode",
        "toy.encoders",
    ):
        program += f"import oneforcing_jax.{module}\n"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=HANG)


@pytest.mark.parametrize("name", presets.PRESETS)
@pytest.mark.parametrize("file", ["framewise", "wan22_5b_framewise"])
def test_presets_fill_their_target(name, file):
    """Sizes of the mesh multiply to the devices, and divide batch, tokens and heads."""
    target = topology.parse(presets.find(name).target)
    config = configs.load(file, presets.overrides(name))
    sizes = dict.fromkeys(sharding.MESH_AXES, 1) | dict(config.mesh)
    devices = math.prod(target.shape) * target.slices
    sizes["fsdp"] = devices if sizes["fsdp"] == -1 else sizes["fsdp"]
    assert math.prod(sizes.values()) == devices
    stage = config.stages.one_forcing
    assert (stage.microbatch or stage.batch) % (sizes["data"] * sizes["fsdp"]) == 0
    tokens = config.latents.rows * config.latents.columns // 4
    assert tokens in (1560, 880) and tokens % (sizes["context"] * sizes["sequence"]) == 0
    for heads in (config.generator.num_heads, config.teacher.num_heads):
        assert heads % (sizes["tensor"] * sizes["sequence"]) == 0


def test_a_teacher_of_other_latents_is_refused(tmp_path):
    """The 14B of Wan2.1 cannot judge the 5B's clips."""
    of_14b = {"dim": 5120, "num_heads": 40, "num_layers": 40, "in_dim": 16, "out_dim": 16}
    overrides = [f"--config.teacher.{field}={value}" for field, value in of_14b.items()]
    with pytest.raises(
        ValueError, match="expected in_dim 48 of network 'teacher', .* found 16; set"
    ):
        main.run("configs/wan22_5b_framewise.py", tmp_path, overrides, dry_run=True)


def test_a_preset_that_there_is_not(tmp_path):
    with pytest.raises(SystemExit, match="expected one of .*'h100x8'.*found 'laptop'"):
        main.main(["--config=configs/framewise.py", f"--workdir={tmp_path}", "--preset=laptop"])


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"sequence": 8}, "heads of generator to divide over 8 devices .sequence 8., found 12"),
        ({"context": 8, "sequence": 1}, None),
        ({"context": 2, "sequence": 4, "fsdp": 1}, None),
        ({"tensor": 8}, "heads of generator to divide over 8 devices .tensor 8., found 12"),
    ],
)
def test_what_a_mesh_must_divide(mesh, message):
    def made(config):
        run = Run.of(config)
        return train.trainer(
            run, "one_forcing", train.trained(run)["one_forcing"], jax.devices()[:8]
        )

    fields = {"fsdp": 1} | mesh
    overrides = [f"--config.mesh.{axis}={size}" for axis, size in fields.items()]
    config = configs.load("configs/framewise.py", overrides)
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        made(config)
    odd = configs.load("configs/framewise.py", [*overrides, "--config.latents.rows=62"])
    if not message and mesh["sequence"] * mesh["context"] == 8:
        with pytest.raises(ValueError, match="tokens of a frame to divide over 8 .*found 1612"):
            made(odd)


@pytest.mark.parametrize("there", [True, False])
def test_an_error_that_nobody_foresaw_is_one_line_and_a_file(tmp_path, monkeypatch, there):
    def broken(*_):
        raise KeyError("no such thing")

    monkeypatch.setattr(main.stages, "prepare", broken)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    workdir = tmp_path / "w"
    if there:
        workdir.mkdir()
    with pytest.raises(SystemExit) as caught:
        main.main(["--config=configs/noise.py", f"--workdir={workdir}"])
    line = str(caught.value)
    assert line.startswith("error: KeyError in main.py, line ") and "\n" not in line
    (file,) = (workdir if there else tmp_path).glob("error-*.txt")
    assert str(file) in line and "in broken" in file.read_text()

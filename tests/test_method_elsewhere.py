"""A training method from one file outside the package: it trains, is counted, is sampled, and resumes."""

import json

import numpy as np
import pytest
from noise_store import write_noise

from oneforcing_jax import main, methods
from oneforcing_jax.generation import pretrained
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup import stages
from oneforcing_jax.setup.run import Run
from oneforcing_jax.targets import forecast, topology

METHOD = '''
import dataclasses

import jax
import jax.numpy as jnp

from oneforcing_jax.causal import flops, structures
from oneforcing_jax.methods import Definition, Method, Network, Sampled, Update, Work, sample_fields
from oneforcing_jax.models import wan
from oneforcing_jax.models.wan import WanConfig


@dataclasses.dataclass(frozen=True)
class Regression:
    level: float


@dataclasses.dataclass(frozen=True)
class Config:
    student: WanConfig
    regression: Regression


def make(config, run):
    """Clips from noise at one level, block-causally."""
    model, level = wan.model(config.student), config.regression.level
    attend = structures.structured(structures.block_causal(run.layout))

    def draw(key, batch):
        return jax.random.normal(key, batch["latents"].shape)

    def loss(params, nets, batch, noise):
        sigma = jnp.full(noise.shape[:2], level)
        out = model.apply(params, noise, sigma, model.condition(batch), attend=attend)
        value = jnp.square(noise - level * out.flow - batch["latents"]).mean()
        return value, {"loss": value}

    tokens = config.student.frame_tokens(*run.latents.shape[2:])
    once = flops.structured(config.student, tokens, structures.block_causal(run.layout))
    return Method(
        nets={"student": Network(model, "student")},
        updates=(Update("student", 1, draw, loss, Work(once.train, once.train)),),
        sampled=Sampled("student", run.plan),
        fields=sample_fields(run, model),
    )


METHOD = Definition(Config, make)
'''

CONFIG = """
import runpy
from pathlib import Path

from oneforcing_jax.setup.config import section
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.training.optim import Optimiser


def get_config():
    base = runpy.run_path({base!r})
    c = base["get_config"]()
    for name in ("generator", "teacher", "critic", "head", "one_forcing"):
        del c[name]
    c.mesh.update({{"data": -1, "fsdp": 1}})
    c.latents = {{"frames": 2, "channels": 3, "rows": 4, "columns": 4}}
    c.student = section(WanConfig(16, 16, 2, 1, 3, 3, text_dim=8, text_len=8, freq_dim=8))
    c.regression = {{"level": 0.5}}
    rule = section(Optimiser(learning_rate=1e-2))
    c.stages = {{
        "train": base["train_stage"](
            "elsewhere.regression", "data/store", 4, 8, {{"student": rule}}, {{"student": "random"}},
            ema={{"decay": 0.5, "start": 0}}, checkpoint_every=2,
            samples={{"every": 2, "prompts": ("a red square",), "decoder": ""}},
            best={{"metric": "samples/motion", "mode": "max"}},
        )
    }}
    c.run = ("train",)
    return c
"""


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """The method's file, a config that names it, and a store of noise with the toy's encoders."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "regression.py").write_text(METHOD)
    base = str(configs.Path(__file__).parents[1] / "configs" / "base.py")
    (tmp_path / "config.py").write_text(CONFIG.format(base=base))
    monkeypatch.syspath_prepend(str(tmp_path))
    write_noise(tmp_path / "data", {"latents": (2, 3, 4, 4), "text": (8, 8)})
    return tmp_path


def train(workdir, *overrides):
    main.main([f"--config={workdir / 'config.py'}", f"--workdir={workdir}", *overrides])


def rows(workdir):
    return [json.loads(line) for line in (workdir / "train" / "metrics.jsonl").open()]


def test_it_trains_samples_and_resumes(workdir):
    train(workdir, "--config.stages.train.iterations=2")
    assert [row["iteration"] for row in rows(workdir)] == [1, 2]
    train(workdir)
    found = rows(workdir)
    assert [row["iteration"] for row in found] == [1, 2, 3, 4]
    assert all(np.isfinite(row["student/loss"]) for row in found)
    assert found[-1]["samples/motion"] > 0 and found[-1]["samples/motion_ema"] > 0
    assert len(list((workdir / "train" / "samples").glob("*.mp4"))) == 2
    # What it trained is found by its folder alone.
    source = pretrained.find(workdir / "train", ema=True)
    assert source.net == "student" and source.block_frames == 1
    assert source.params()["blocks"]["ffn"]["0"]["kernel"].shape == (1, 16, 16)
    assert pretrained.find_encoders(workdir / "train") == workdir / "data" / "store"


def test_it_is_counted_and_planned(workdir):
    run = Run.of(configs.load(workdir / "config.py"))
    work = methods.make("elsewhere.regression", run).updates[0].work
    (plan,) = forecast.train(run, ["train"], topology.find("local"))
    (cost,) = plan.costs
    assert cost.model_flops == 8 * work.model > 0
    assert plan.fits and cost.bytes["state"] > 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "stages.train.method=elsewhere.absent",
            "expected one of .*'one_forcing'.*'elsewhere.absent'",
        ),
        ("stages.train.method=own_rollout", "expected one of .*'teacher'.*found 'own_rollout'"),
        (
            "stages.train.method=os.path",
            "a module that has METHOD and can be imported, found 'os.path'",
        ),
        (
            "stages.train.kind=trian",
            r"field 'stages.train.kind': expected one of \['ode_pairs', 'train'\]",
        ),
        (
            "stages.train.init.student=",
            "'stages.train.init.student': expected 'random', 'STAGE:NET'",
        ),
        (
            "stages.train.samples.decoder=tiny",
            "encoders .*: decoder: expected none, .* found 'tiny'; leave it out",
        ),
        ("regression.level=x", "field 'regression.level': expected float such as 0.5"),
    ],
)
def test_what_a_config_names_wrongly(workdir, override, message):
    with pytest.raises(SystemExit, match=message):
        train(workdir, f"--config.{override}")


def level(config, **fields):
    del config.regression
    config.regression = fields


WRONG = {
    "section 'regresion'; did you mean 'regression'": lambda c: c.update(regresion={"level": 1.0}),
    "'regression.levle'; did you mean 'regression.level'": lambda c: level(c, level=0.5, levle=1.0),
    "field 'regression.level': expected float, found 'x'": lambda c: level(c, level="x"),
    "'stages.train.batchs'; did you mean 'stages.train.batch'": lambda c: c.stages.train.update(
        batchs=2
    ),
    r"entry for each of \['student'\], found": lambda c: c.stages.train.init.update(
        critic="random"
    ),
    "field 'shift': expected a finite number, found nan": lambda c: c.update(shift=float("nan")),
    "field 'latents.rows': expected a whole number of 1 or more, below 2.31, found 0": lambda c: (
        c.latents.update(rows=0)
    ),
    "optimisers.student.learning_rate': expected a number above 0": lambda c: (
        c.stages.train.optimisers.student.update(learning_rate=-1.0)
    ),
    "'stages.train.ema.decay': expected a number from 0 to below 1": lambda c: (
        c.stages.train.ema.update(decay=2.0)
    ),
    "expected a field 'shift', found none": lambda c: c.__delattr__("shift"),
}


@pytest.mark.parametrize(("message", "change"), WRONG.items())
def test_what_a_config_says_wrongly(workdir, message, change):
    config = configs.load(workdir / "config.py", (), change)
    with pytest.raises(ValueError, match=message):
        stages.prepare(Run.of(config))


BROKEN = {
    "line 2: SyntaxError": "\ndef get_config(:\n",
    "line 3: ZeroDivisionError: division by zero": "\ndef get_config():\n    return 1 / 0\n",
    "returns a ConfigDict, found NoneType": "x = 1\n",
    "returns a ConfigDict, found dict": "def get_config():\n    return {}\n",
}


@pytest.mark.parametrize(("message", "content"), BROKEN.items())
def test_files_that_fail_name_their_line(tmp_path, message, content):
    (tmp_path / "broken.py").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        configs.load(tmp_path / "broken.py")
    assert "broken.py" in str(caught.value) and "\n" not in str(caught.value)

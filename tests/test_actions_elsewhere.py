"""A condition of every frame from one file outside the package: actions train, stream, and change at once."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import error
from noise_store import write_noise

from oneforcing_jax import main
from oneforcing_jax.causal.generate import Generator, generate
from oneforcing_jax.causal.plan import draw, make_plan
from oneforcing_jax.causal.replay import differentiable
from oneforcing_jax.causal.sequential import sequential
from oneforcing_jax.generation import pretrained
from oneforcing_jax.generation.student import Student
from oneforcing_jax.models.condition import Condition
from oneforcing_jax.models.model import unstacked
from oneforcing_jax.setup import config as configs

ACTIONS = '''
import dataclasses
import functools

import jax
import jax.numpy as jnp

from oneforcing_jax.methods import Definition, Method, Network, Sampled, sample_fields, teacher_forcing
from oneforcing_jax.models import wan
from oneforcing_jax.models.condition import FRAME, Field
from oneforcing_jax.models.layers import logical
from oneforcing_jax.models.wan import WanConfig


@functools.cache
def model(config):
    """Wan's transformer with two numbers for every frame, whose embedding is added to that of the time."""
    base = wan.model(config)
    begin = logical(jax.nn.initializers.normal(), (None, "embed"))

    def init(key):
        first, second = jax.random.split(key)
        return base.init(first) | {"action": {"kernel": begin(second, (2, config.dim))}}

    def apply(params, latents, sigma, condition, **how):
        embedded = condition.frame["action"] @ params["action"]["kernel"].astype(jnp.float32)
        return base.apply(params, latents, sigma, condition, beside=embedded, **how)

    takes = {**base.takes, "action": Field((2,), FRAME)}
    again = lambda other, product: model(other or config)
    return dataclasses.replace(base, takes=takes, init=init, apply=apply, again=again)


@dataclasses.dataclass(frozen=True)
class Config:
    student: WanConfig


def make(config, run):
    net = model(config.student)
    return Method(
        nets={"model": Network(net, "student")},
        updates=(teacher_forcing.causal(net, run.layout, run.shift, 0.5),),
        sampled=Sampled("model", run.plan),
        fields=sample_fields(run, net),
    )


METHOD = Definition(Config, make)
'''

CONFIG = """
import runpy

from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.setup.config import section
from oneforcing_jax.training.optim import Optimiser


def get_config():
    base = runpy.run_path({base!r})
    c = base["get_config"]()
    for name in ("generator", "teacher", "critic", "head", "one_forcing"):
        del c[name]
    c.mesh.update({{"data": -1, "fsdp": 1}})
    c.latents = {{"frames": 3, "channels": 3, "rows": 4, "columns": 4}}
    c.student = section(WanConfig(16, 16, 2, 2, 3, 3, text_dim=8, text_len=8, freq_dim=8))
    rule = section(Optimiser(learning_rate=1e-1))
    c.stages = {{
        "train": base["train_stage"](
            "played.actions", "data/store", 2, 8, {{"model": rule}}, {{"model": "random"}},
            ema={{"decay": 0.0, "start": 0}}, checkpoint_every=2,
            samples={{"every": 2, "prompts": ("a red square",), "decoder": ""}},
        )
    }}
    c.run = ("train",)
    return c
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A stage that was trained on clips with actions; what its checkpoint holds."""
    folder = tmp_path_factory.mktemp("actions")
    (folder / "played").mkdir()
    (folder / "played" / "actions.py").write_text(ACTIONS)
    base = str(configs.Path(__file__).parents[1] / "configs" / "base.py")
    (folder / "config.py").write_text(CONFIG.format(base=base))
    shapes = {"latents": (3, 3, 4, 4), "text": (8, 8), "action": (3, 2)}
    write_noise(folder / "data", shapes)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        main.main([f"--config={folder / 'config.py'}", f"--workdir={folder}"])
        yield folder / "train"


def given(frames, seed=0):
    rng = np.random.default_rng(seed)
    words = {"text": rng.standard_normal((1, 8, 8), np.float32)}
    return Condition(words, {"action": rng.standard_normal((1, frames, 2), np.float32)})


def test_actions_train_and_have_an_effect(trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").open()]
    assert [np.isfinite(row["model/loss"]) for row in rows] == [True, True]
    # Without actions, as in these samples, they are none.
    assert rows[-1]["samples/motion"] > 0
    source = pretrained.find(trained)
    assert source.params()["action"]["kernel"].shape == (2, 16)


def test_a_stream_changes_at_once(trained):
    """Against the plain form: each frame has its own actions, in its noisy and in its clean pass. They may
    change before every block, without a pass over the context."""
    source = pretrained.find(trained)
    model, params, plan = source.model, source.params(), make_plan(6, 1, (1000.0,), 5.0)
    noise, condition = draw(jax.random.key(0), (1, 6, 3, 4, 4), plan, 0.0), given(6)
    g = Generator(model, params)
    whole = jax.jit(lambda: sequential(g, noise, condition, plan, 0, "stop"))()
    assert error(jax.jit(lambda: generate(g, noise, condition, plan).latents)(), whole) < 1e-5
    for layers in (params, unstacked(params)):
        student = Student(model, layers)
        ready = student.prepare(condition)
        asked = []

        def conditions(start, ready=ready, asked=asked):
            asked.append(start)
            return ready.cut(start)

        found = student.clip(noise, conditions, plan)
        assert error(found, whole) < 1e-5 and asked == list(range(6))
        assert student._context._cache_size() == 0
        other = ready._replace(
            frame={"action": ready.frame["action"] + (np.arange(6) > 3)[:, None]}
        )
        changed = student.clip(noise, other, plan)
        assert error(changed[:, :4], found[:, :4]) == 0 < error(changed[:, 4], found[:, 4])
        # Frames that a video continues have theirs too.
        rest = list(
            student.stream(noise._replace(start=noise.start[:, 2:]), ready, plan[2:], found[:, :2])
        )
        assert error(np.concatenate(rest, 1), found[:, 2:]) < 1e-5


@pytest.mark.long
def test_gradients_pass(trained):
    source = pretrained.find(trained)
    params, plan = source.params(), make_plan(4, 1, (1000.0,), 5.0)
    noise, condition = draw(jax.random.key(1), (1, 4, 3, 4, 4), plan, 0.0), given(4)

    def gradient(form):
        def loss(params):
            clip = form(
                Generator(source.model, params), noise, condition, plan, 1, "straight_through"
            )
            return jnp.square(clip).sum()

        return jax.jit(jax.grad(loss))(params)["action"]["kernel"]

    found, expected = gradient(differentiable), gradient(sequential)
    assert error(found, expected) < 1e-4 and np.abs(expected).max() > 1e-3


def test_frames_without_actions_are_said(trained):
    source = pretrained.find(trained)
    student = Student(source.model, source.params())
    plan = make_plan(4, 1, (1000.0,), 5.0)
    noise = draw(jax.random.key(0), (1, 4, 3, 4, 4), plan, 0.0)
    with pytest.raises(ValueError, match="expected 'action' of 1 frames from number 2 on, found 0"):
        student.clip(noise, student.prepare(given(2)), plan)

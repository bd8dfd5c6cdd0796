"""Low-rank training from one file outside the package: a product, and a method whose student has it."""

import json
import shutil

import jax
import numpy as np
import pytest
import torch
from goldens import error
from noise_store import write_noise

from oneforcing_jax import main, sharding
from oneforcing_jax.causal.plan import draw, make_plan
from oneforcing_jax.generation import pretrained
from oneforcing_jax.generation.student import Student
from oneforcing_jax.models import trees, wan
from oneforcing_jax.models.products.plain import PLAIN
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.setup import config as configs
from oneforcing_jax.system import checkpoint, items, saved
from tools import export_torch

METHOD = '''
import flax.linen as nn

from oneforcing_jax.methods import Definition, Method, Network, Sampled, sample_fields
from oneforcing_jax.methods import teacher_forcing
from oneforcing_jax.models import wan
from oneforcing_jax.models.products import Leaf, Product, plain
from oneforcing_jax.sharding import gathered

RANK = 3


def leaves(init, shape, axes, name):
    """Adapters beside the kernels of attention, the second zero at first."""
    found = plain.leaves(init, shape, axes, name)
    if "heads" in axes:
        down, up = nn.initializers.normal(shape[0] ** -0.5), nn.initializers.zeros_init()
        found["down"] = Leaf(down, (shape[0], RANK), (axes[0], None))
        found["up"] = Leaf(up, (RANK, shape[1]), (None, axes[1]))
    return found


def multiply(x, leaves, axes):
    y = plain.multiply(x, leaves, axes)
    if "down" not in leaves:
        return y
    down = gathered(leaves["down"].astype(x.dtype), (axes[0], None))
    up = gathered(leaves["up"].astype(x.dtype), (None, axes[1]))
    return y + plain.matmul(plain.matmul(x, down), up)


def merged(leaves):
    return leaves["kernel"] + leaves["down"] @ leaves["up"] if "down" in leaves else leaves["kernel"]


LOW_RANK = Product(leaves, multiply, merged, own=("down", "up"))


def make(config, run):
    model = wan.model(config.generator, LOW_RANK)
    return Method(
        nets={"model": Network(model, "generator")},
        updates=(teacher_forcing.causal(model, run.layout, run.shift, 0.0),),
        sampled=Sampled("model", run.plan),
        fields=sample_fields(run, model),
    )


METHOD = Definition(teacher_forcing.Config, make)
'''

CONFIG = """
import runpy

from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.setup.config import section
from oneforcing_jax.training.optim import Optimiser


def get_config():
    base = runpy.run_path({base!r})
    c = base["get_config"]()
    for name in ("teacher", "critic", "head", "one_forcing"):
        del c[name]
    c.mesh.update({{"data": 1, "fsdp": -1}})
    c.latents = {{"frames": 2, "channels": 3, "rows": 4, "columns": 4}}
    c.generator = section(WanConfig(16, 16, 2, 1, 3, 3, text_dim=8, text_len=8, freq_dim=8))
    c.prompt_drop_rate, c.bell_weighting = 0.0, False
    rule = {{"model": section(Optimiser(learning_rate=1e-2))}}

    def stage(method, iterations, source, **changes):
        return base["train_stage"](method, "store", iterations, 8, rule, {{"model": source}}, **changes)

    c.stages = {{
        "base": stage("teacher_forcing", 2, "random"),
        "adapted": stage(
            "mine.low_rank", 4, "base:model", ema={{"decay": 0.5, "start": 0}}, checkpoint_every=2,
            samples={{"every": 4, "prompts": ("a red square",), "decoder": ""}},
        ),
    }}
    c.run = ("adapted",)
    return c
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, random_params):
    """Two work directories with a base and what was trained from it: without a break, and from the middle."""
    folder = tmp_path_factory.mktemp("low_rank")
    (folder / "mine").mkdir()
    (folder / "mine" / "low_rank.py").write_text(METHOD)
    base = str(configs.Path(__file__).parents[1] / "configs" / "base.py")
    (folder / "config.py").write_text(CONFIG.format(base=base))
    unbroken, resumed = folder / "unbroken", folder / "resumed"
    write_noise(unbroken, {"latents": (2, 3, 4, 4), "text": (8, 8)})
    model = wan.model(WanConfig(16, 16, 2, 1, 3, 3, text_dim=8, text_len=8, freq_dim=8))
    with checkpoint.manager(unbroken / "base" / "checkpoints") as manager:
        for step in (1, 2):
            checkpoint.save(manager, step, {"params": {"model": random_params(model, step)}})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        train(unbroken, "--config.stages.adapted.samples.every=0")
        shutil.copytree(unbroken, resumed)
        shutil.rmtree(resumed / "adapted" / "checkpoints" / "4")
        train(resumed)
        yield resumed, unbroken


def train(workdir, *overrides):
    config = workdir.parent / "config.py"
    main.main([f"--config={config}", f"--workdir={workdir}", *overrides])


def is_adapter(path):
    return path[-1] in ("down", "up")


def read(folder, ema=False):
    source = pretrained.find(folder, ema=ema)
    return source, jax.tree.map(np.asarray, source.params())


def is_same(one, other):
    equal = jax.tree.map(np.array_equal, one, other)
    return all(jax.tree.leaves(equal))


def test_adapters_alone_are_trained_and_kept(trained):
    workdir, unbroken = trained
    abstract = wan.model(pretrained.find(workdir / "adapted").config).in_use(
        sharding.make_mesh({"data": 1}, jax.devices()[:1])
    )
    base = saved.load_net(workdir / "base" / "checkpoints", "model", abstract)
    for ema in (False, True):
        _, params = read(workdir / "adapted", ema)
        assert is_same(trees.select(params, lambda path: not is_adapter(path)), base)
        assert np.abs(params["blocks"]["self_attn"]["q"]["up"]).max() > 1e-3
        assert is_same(params, read(unbroken / "adapted", ema)[1])
    step = saved.find(workdir / "adapted" / "checkpoints")
    kept = {path.name: items.paths(path) for path in step.glob("*_model")}
    assert kept.keys() == {"params_model", "opt_model", "ema_model"}
    for name in ("params_model", "ema_model"):
        assert kept[name] and all(is_adapter(path) for path in kept[name])
    arrays = [path for path in kept["opt_model"] if path[-1] in ("kernel", "bias", "scale")]
    assert not arrays and sum(is_adapter(path) for path in kept["opt_model"]) == len(kept[name])


def test_it_resumes_to_the_same_numbers(trained):
    found, expected = (
        [json.loads(line) for line in (folder / "adapted" / "metrics.jsonl").open()]
        for folder in trained
    )
    assert [row["iteration"] for row in found] == [1, 2, 3, 4]
    assert found[-1]["samples/motion"] > 0 and found[-1]["samples/motion_ema"] > 0
    for name in ("model/loss", "model/gradient_norm", "model/update_norm"):
        assert [row[name] for row in found] == [row[name] for row in expected]


def merged(params):
    """Parameters of a plain network."""
    plain = trees.select(params, lambda path: not is_adapter(path))
    for attention in ("self_attn", "cross_attn"):
        for name, leaves in params["blocks"][attention].items():
            if "down" in leaves:
                whole = leaves["kernel"] + leaves["down"] @ leaves["up"]
                plain["blocks"][attention][name]["kernel"] = whole
    return plain


def test_it_is_exported_merged(trained, tmp_path):
    _, params = read(trained[0] / "adapted")
    export_torch.main([
        f"--checkpoint={trained[0] / 'adapted' / 'checkpoints'}", "--net=model", f"--out={tmp_path / 'x.pt'}"
    ])  # fmt: skip
    exported = torch.load(tmp_path / "x.pt", weights_only=True)["generator"]
    assert not [name for name in exported if "down" in name or "up" in name.split(".")]
    blocks = merged(params)["blocks"]
    for name in ("self_attn.q", "cross_attn.o", "ffn.0"):
        leaf = blocks[name.split(".")[0]][name[-1]]["kernel"][0]
        assert error(exported[f"model.blocks.0.{name}.weight"].numpy().T, leaf) < 1e-6


@pytest.mark.long
def test_it_streams_as_the_merged_network(trained):
    """Its samples in training, above, are streams too."""
    source, params = read(trained[0] / "adapted")
    plan = make_plan(source.frames, source.block_frames, source.steps, source.shift)
    draws = draw(jax.random.key(0), (1, 2, 3, 4, 4), plan, 0.0)
    clips = []
    for model, own in (
        (source.model, params),
        (source.model.with_product(PLAIN), merged(params)),
    ):
        student = Student(model, own)
        condition = student.prepare(model.condition({"text": np.ones((1, 8, 8), np.float32)}))
        clips.append(np.asarray(student.clip(draws, condition, plan)))
    assert error(*clips) < 1e-5


def test_a_base_that_is_missing_or_another_one_is_named(trained, tmp_path):
    workdir = tmp_path / "moved"
    shutil.copytree(trained[0], workdir)
    (tmp_path / "config.py").write_text((trained[0].parent / "config.py").read_text())
    read(workdir / "adapted")  # both were moved together
    bases = workdir / "base" / "checkpoints"
    (bases / "2").rename(tmp_path / "2")
    (bases / "1").rename(bases / "2")
    with pytest.raises(ValueError, match="'model' stands, .* with the SHA-256 .*, found .*restore"):
        read(workdir / "adapted")
    shutil.rmtree(workdir / "base")
    with pytest.raises(
        ValueError, match="on which 'model' stands, 'model' of .*, found none there"
    ):
        read(workdir / "adapted")
    with pytest.raises(SystemExit, match="on which 'model' stands"):
        train(workdir, "--config.stages.adapted.iterations=6")
    with pytest.raises(SystemExit, match="'stages.adapted.init.model': expected a trained network"):
        train(workdir, "--config.stages.adapted.init.model=random")

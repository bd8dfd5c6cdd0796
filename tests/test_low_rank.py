"""Low-rank training as a field of a stage: what is trained and kept, and what networks share."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import error

from oneforcing_jax import main
from oneforcing_jax.convert import lora
from oneforcing_jax.errors import InputError
from oneforcing_jax.generation import pretrained
from oneforcing_jax.models import trees, wan
from oneforcing_jax.models.condition import prompted
from oneforcing_jax.models.products import low_rank
from oneforcing_jax.models.products.low_rank import LowRank
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup import stages
from oneforcing_jax.setup.run import Run
from oneforcing_jax.system import checkpoint, items, saved
from oneforcing_jax.training import tiny
from oneforcing_jax.training.train import trainer
from tools import export_lora, import_lora

CONFIG = WanConfig(16, 24, 2, 2, in_dim=2, out_dim=2, text_dim=8, text_len=4, freq_dim=8)
STAGE = "--config.stages.one_forcing."
ADAPTED = [
    f"{STAGE}low_rank.generator.rank=3", f"{STAGE}low_rank.critic.rank=2",
    f"{STAGE}low_rank.critic.alpha=4", f"{STAGE}low_rank.critic.where=self_attn.[qk],time_projection",
]  # fmt: skip
SHARED = [f"{STAGE}init.{net}=teacher:model" for net in ("generator", "critic", "teacher")]


def made(*overrides):
    """The trainer of a stage of One-Forcing."""
    run = Run.of(configs.load("noise", overrides))
    return trainer(run, "one_forcing", stages.read(run, "one_forcing")[1], jax.devices()[:1])


def is_adapter(path):
    return path[-1] in (low_rank.DOWN, low_rank.UP)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_adapters_alone_have_state_and_one_base_serves_three_networks():
    adapted = made(*ADAPTED, *SHARED)
    state, frozen = adapted.abstract()
    assert adapted.lent == {"generator": "teacher", "critic": "teacher"}
    assert frozen.keys() == {"teacher"}
    assert size(frozen) == size(adapted.method.nets["teacher"].model.shapes)
    # A layer's ten matrices of 16x16 at rank 3; the head of the critic is new and trained whole.
    assert size(state["params"]["generator"]) == 3 * 10 * (16 + 16) == size(state["ema"])
    assert all(is_adapter(path) for path in trees.flat(state["params"]["generator"]))
    critic = state["params"]["critic"]
    chosen = {path[:-1] for path in trees.flat(critic["model"])}
    assert chosen == {("time_projection",), *(("blocks", "self_attn", n) for n in "qk")}
    assert not [path for path in trees.flat(critic["readers"]) if is_adapter(path)]
    assert size(state["opt"]["critic"]) < 2 * size(critic) + 10
    whole = adapted.whole(state, frozen)
    for net, params in whole.items():
        shapes = jax.tree.map(np.shape, adapted.method.nets[net].model.in_use(adapted.mesh))
        assert jax.tree.map(np.shape, params) == shapes
    assert whole["critic"]["model"]["head"]["bias"] is frozen["teacher"]["head"]["bias"]


def test_a_base_is_lent_where_it_is_the_same_alone():
    assert made(*SHARED).lent == {}  # trained whole
    other = [*ADAPTED, *SHARED, f"{STAGE}init.critic=ode:model"]
    assert made(*other).lent == {"generator": "teacher"}
    assert made(*ADAPTED, *SHARED, "--config.generator.dtype=bfloat16").lent == {
        "critic": "teacher"
    }
    without = made(*ADAPTED, *SHARED, "--config.one_forcing.dmd_weight=0.0")
    assert without.lent == {"critic": "generator"}
    whole = without.whole(*without.abstract())["critic"]
    assert whole.keys() > {"model", "readers"} and "down" in whole["model"]["time_projection"]


def test_at_first_the_flow_is_the_base_s_and_then_that_of_merged_kernels(random_params):
    plain = wan.model(CONFIG)
    adapters = LowRank(4, 2.0, ("self_attn.[qo]", "ffn.0", "time_embedding_0"))
    model = plain.with_product(low_rank.product(adapters))
    rng = np.random.default_rng(0)
    x, text = rng.normal(size=(2, 3, 2, 4, 4)), rng.normal(size=(2, 4, 8))
    given = (
        jnp.asarray(x, jnp.float32),
        jnp.asarray([0.3, 0.8]),
        prompted(jnp.asarray(text, jnp.float32)),
    )

    def flow(model, params):
        return np.asarray(jax.jit(model.apply)(params, *given).flow)

    params = random_params(model)
    zero = jax.tree_util.tree_map_with_path(
        lambda path, x: 0 * x if path[-1].key == "up" else x, params
    )
    base = trees.select(params, lambda path: not is_adapter(path))
    first = flow(plain, base)
    assert np.array_equal(flow(model, zero), first)
    merged = jax.tree.map(np.copy, base)
    for place in (
        ("blocks", "self_attn", "q"),
        ("blocks", "self_attn", "o"),
        ("blocks", "ffn", "0"),
        ("time_embedding_0",),
    ):
        own, target = params, merged
        for name in place:
            own, target = own[name], target[name]
        target["kernel"] = own["kernel"] + 0.5 * own["down"] @ own["up"]
    assert (
        error(flow(model, params), flow(plain, merged)) < 1e-5 < error(first, flow(plain, merged))
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "generator.where=to_q",
            r"low_rank.generator.where: .*'blocks.cross_attn.k'.*found \['to_q'\]",
        ),
        ("generator.where=[", r"where: expected regular expressions, found '\['"),
        ("generator.rank=-1", "low_rank.generator.rank.*0 or more.*found -1"),
    ],
)
def test_what_is_no_adapter_is_refused(override, said):
    with pytest.raises(InputError, match=said):
        made(*ADAPTED, f"{STAGE}low_rank.{override}")


def test_adapters_of_a_frozen_network_are_refused():
    config = configs.load("noise", ADAPTED)
    with config.unlocked():
        config.stages.one_forcing.low_rank = {"teacher": {"rank": 1}}
    run = Run.of(config)
    with pytest.raises(InputError, match=r"trained networks among .*'critic'.*found 'teacher'"):
        trainer(run, "one_forcing", stages.read(run, "one_forcing")[1])


@pytest.mark.long
def test_it_trains_keeps_adapters_alone_and_resumes_to_the_same_numbers(tmp_path, random_params):
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    options = [*ADAPTED, *SHARED, f"{STAGE}iterations=4", f"{STAGE}checkpoint_every=2"]
    fields = made(*options).method.fields
    tiny.write_noise(unbroken / "noise", fields)
    base = random_params(made(*options).method.nets["teacher"].model)
    with checkpoint.manager(unbroken / "teacher" / "checkpoints") as manager:
        checkpoint.save(manager, 8, {"params": {"model": base}})

    def train(workdir, *more):
        main.main(["--config=noise", f"--workdir={workdir}", *options, *more])

    train(unbroken)
    shutil.copytree(unbroken, resumed)
    shutil.rmtree(resumed / "one_forcing" / "checkpoints" / "4")
    train(resumed)
    rows = [
        [json.loads(line) for line in (folder / "one_forcing" / "metrics.jsonl").open()]
        for folder in (unbroken, resumed)
    ]
    assert [row["critic/loss"] for row in rows[0]] == [row["critic/loss"] for row in rows[1]]
    step = saved.find(resumed / "one_forcing" / "checkpoints")
    for item in ("params_generator", "ema_generator"):
        assert all(is_adapter(path) for path in items.paths(step / item))
    source = pretrained.find(resumed / "one_forcing")
    params = jax.tree.map(np.asarray, source.params())
    kept = trees.select(params, lambda path: not is_adapter(path))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, kept, base)))
    assert np.abs(params["blocks"]["ffn"]["0"]["up"]).max() > 0
    # What is exported and merged into the base is the network that was trained.
    out = tmp_path / "trained.safetensors"
    export_lora.main([f"--checkpoint={resumed / 'one_forcing'}", f"--out={out}", "--layout=kohya"])
    kernel = ("blocks", "ffn", "0", "kernel")
    leaves = params["blocks"]["ffn"]["0"]
    merged = lora.merged(kernel, leaves["kernel"], [(lora.read(out), 1.0)])
    assert error(merged, leaves["kernel"] + leaves["down"] @ leaves["up"]) < 1e-6
    options = [f"--checkpoint={resumed / 'one_forcing'}", f"--out={tmp_path / 'base'}"]
    import_lora.main([*options, f"--lora={out}:-1"])
    again = trees.flat(pretrained.find(tmp_path / "base", dtype="float32").params())
    assert error(again[kernel], trees.flat(base)[kernel]) < 1e-6

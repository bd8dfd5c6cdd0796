"""Train steps: the same on every mesh, resumable bit for bit, and clear about what does not fit."""

import contextlib
import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from goldens import abstract, error
from jax.flatten_util import ravel_pytree

from oneforcing_jax import flow, sharding
from oneforcing_jax.causal.plan import make_plan
from oneforcing_jax.methods import (
    AVERAGE,
    Method,
    Network,
    Sampled,
    Update,
    causal_consistency,
    causal_ode,
    one_forcing,
    teacher,
    teacher_forcing,
)
from oneforcing_jax.methods.distillation import (
    Distillation,
    Settings,
)
from oneforcing_jax.models import critic as critics
from oneforcing_jax.models import wan
from oneforcing_jax.models.condition import prompted
from oneforcing_jax.models.critic import HeadConfig
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.setup import config as configs
from oneforcing_jax.system import checkpoint, saved
from oneforcing_jax.training import steps
from oneforcing_jax.training.optim import Optimiser

CONFIG = WanConfig(32, 48, 4, 2, in_dim=2, out_dim=2, text_dim=8, text_len=8, freq_dim=8)
CONFIGS = Path(__file__).parents[1] / "configs"
BATCH = 8
needs_eight = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")
THREE = {"data": 2, "fsdp": 2, "sequence": 2}
TENSOR = {"data": 2, "sequence": 2, "tensor": 2}


def one_forcing_method(config=CONFIG):
    made = Distillation(
        wan.model(config),
        wan.model(config),
        critics.model(config, HeadConfig((0, 1), 32)),
        make_plan(2, 1, [1000], 5.0),
        Settings(generator_every=2, context_sigma=0.1),
    )
    nets, updates = one_forcing.networks(made), one_forcing.updates(made)
    return Method(nets, updates, Sampled("generator", made.plan))


def teacher_forcing_method(remat="none"):
    net = wan.model(dataclasses.replace(CONFIG, remat=remat))
    update = teacher_forcing.causal(net, (1, 1), 3.0, 0.5)
    return Method(
        {"model": Network(net)}, (update,), Sampled("model", make_plan(2, 1, [1000], 3.0))
    )


def make_trainer(method, sizes=None, **given):
    """`eps` is large, so that an update is smooth in its gradient."""
    rule = Optimiser(learning_rate=1e-3, eps=1e-2)
    mesh = sharding.make_mesh(sizes, jax.devices()[: 8 if sizes else 1])
    ema = steps.Ema(decay=0.5, start=1)
    rules = dict.fromkeys(method.trained, rule)
    return steps.Trainer(method, rules, ema, mesh, seed=0, stage="train", batch=BATCH, **given)


def begin(trainer, random_params):
    """State and frozen networks from the same parameters on every mesh."""
    nets = trainer.method.nets
    params = {name: random_params(nets[name].model, seed) for seed, name in enumerate(nets)}
    _, frozen = trainer.abstract()
    place = functools.partial(jax.tree.map, lambda x, like: jax.device_put(x, like.sharding))
    return trainer.init_state(params), {n: place(params[n], like) for n, like in frozen.items()}


def batch(seed):
    rng = np.random.default_rng(seed)
    shapes = {"latents": (BATCH, 2, 2, 4, 4), "text": (BATCH, 8, 8), "negative": (8, 8)}
    shapes["trajectory"] = (BATCH, 3, 2, 2, 4, 4)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def iterate(trainer, run, state, frozen, first, last):
    """Iterations [first, last), as the loop runs them."""
    metrics = {}
    for iteration in range(first, last):
        for number, (update, step) in enumerate(zip(trainer.method.updates, run, strict=True)):
            if iteration % update.every == 0:
                data = trainer.put(batch(10 * iteration + number))
                state, new = step(state, frozen, data, np.int32(iteration))
                metrics |= {f"{update.net}/{key}": value for key, value in new.items()}
    return state, {key: float(value) for key, value in metrics.items()}


def trained(trainer, random_params, iterations):
    with jax.set_mesh(trainer.mesh):
        state, frozen = begin(trainer, random_params)
        before = jax.tree.map(np.asarray, state["params"])
        state, metrics = iterate(trainer, trainer.steps(), state, frozen, 0, iterations)
        return before, state, metrics


def assert_same(found, expected, tolerance):
    """Parameters moved alike, relative to the distance; metrics, averages and optimisers are alike."""
    before, state, metrics = found
    assert metrics.keys() == expected[2].keys()
    for key, value in metrics.items():
        np.testing.assert_allclose(value, expected[2][key], rtol=2e-4, atol=1e-6, err_msg=key)
    for net, old in before.items():
        moved = [
            ravel_pytree(jax.tree.map(lambda a, b: np.asarray(a) - b, s["params"][net], old))[0]
            for s in (state, expected[1])
        ]
        assert np.linalg.norm(moved[1]) > 0
        assert error(*moved) < tolerance, net
    for part in ("ema", "opt"):
        flat = [ravel_pytree(jax.tree.map(np.asarray, s[part]))[0] for s in (state, expected[1])]
        assert error(*flat) < 1e-4, part


def assert_placed(trainer, state):
    """A step leaves the state where a checkpoint will put it."""
    like, _ = trainer.abstract()
    assert jax.tree.structure(like) == jax.tree.structure(state)
    for (path, leaf), spec in zip(
        jax.tree.leaves_with_path(state), jax.tree.leaves(like), strict=True
    ):
        assert leaf.sharding == spec.sharding, path
        assert leaf.dtype == spec.dtype and leaf.shape == spec.shape, path
    net = trainer.method.trained[0]
    kernel = state["params"][net]["blocks"]["ffn"]["0"]["kernel"]
    held = kernel.addressable_shards[0].data.size
    assert held * trainer.mesh.shape["fsdp"] * trainer.mesh.shape["tensor"] == kernel.size
    moment = jax.tree.leaves(state["opt"][net])[-1]
    assert (moment.sharding.memory_kind == "pinned_host") == trainer.offload_optimiser


@functools.cache
def twenty(random_params):
    """20 iterations on one device, whole batch."""
    return trained(make_trainer(teacher_forcing_method()), random_params, 20)


HOW = {
    "accumulated": {"microbatch": 1},
    "offloaded": {"offload_optimiser": True, "remat": "offload"},
    "data": {"sizes": {"data": 8}},
    "mixed": {"sizes": THREE, "microbatch": 4, "offload_optimiser": True, "remat": "full"},
    # The rest runs with `pytest -m long`.
    "fsdp": {"sizes": {"fsdp": 8}},
    "sequence": {"sizes": {"sequence": 4, "data": 2}},
    "context": {"sizes": {"context": 2, "sequence": 2, "data": 2}},
    "tensor": {"sizes": TENSOR, "remat": "dots"},
    "answers kept": {"sizes": THREE, "remat": "attention"},
    "accumulated by twos": {"microbatch": 2, "remat": "offload", "sizes": {"data": 2, "tensor": 4}},
}
LATER = list(HOW)[4:]


@needs_eight
@pytest.mark.parametrize(
    "how", [pytest.param(h, marks=[pytest.mark.long] if h in LATER else []) for h in HOW]
)
def test_results_do_not_depend_on_how_they_are_computed(how, random_params):
    given = dict(HOW[how])
    method = teacher_forcing_method(given.pop("remat", "none"))
    trainer = make_trainer(method, **given)
    found = trained(trainer, random_params, 20)
    assert_same(found, twenty(random_params), 2e-5)
    assert_placed(trainer, found[1])


@functools.cache
def one_forcing_run(random_params, iterations):
    """On one device, whole batch."""
    return trained(make_trainer(one_forcing_method()), random_params, iterations)


@needs_eight
def test_generator_update_is_the_same_on_a_mesh(random_params):
    whole = one_forcing_method()
    method = dataclasses.replace(whole, updates=whole.updates[:1])
    expected = trained(make_trainer(method), random_params, 1)
    trainer = make_trainer(method, {"fsdp": 2, "context": 2, "sequence": 2})
    assert_same(trained(trainer, random_params, 1), expected, 1e-3)


@needs_eight
@pytest.mark.long
@pytest.mark.parametrize(
    "sizes", [{"data": 8}, {"fsdp": 8}, {"sequence": 4, "data": 2}, THREE, TENSOR], ids=str
)
def test_one_forcing_is_the_same_on_every_mesh(sizes, random_params):
    expected = one_forcing_run(random_params, 20)
    trainer = make_trainer(one_forcing_method(), sizes)
    found = trained(trainer, random_params, 20)
    assert_same(found, expected, 1e-3)
    assert_placed(trainer, found[1])


def test_batches_that_do_not_divide_are_refused():
    method = teacher_forcing_method()
    for microbatch in (3, 16, -1):
        with pytest.raises(
            ValueError, match="batch >= 1 that the microbatch divides .* found batch 8 "
        ):
            make_trainer(method, microbatch=microbatch)
    with pytest.raises(
        ValueError, match="a microbatch that divides over 4 devices .* found 2; change"
    ):
        make_trainer(method, THREE, microbatch=2)


@needs_eight
def test_resumed_run_is_the_unbroken_one(tmp_path, random_params):
    trainer = make_trainer(teacher_forcing_method(), THREE)
    with jax.set_mesh(trainer.mesh):
        run = trainer.steps()
        state, frozen = begin(trainer, random_params)
        unbroken, _ = iterate(trainer, run, state, frozen, 0, 3)

        state, frozen = begin(trainer, random_params)
        state, _ = iterate(trainer, run, state, frozen, 0, 1)
        with checkpoint.manager(tmp_path) as manager:
            checkpoint.save(manager, 1, state)
        with checkpoint.manager(tmp_path) as manager:
            iteration, state, _ = checkpoint.restore(manager, trainer.abstract()[0])
        assert iteration == 1
        resumed, _ = iterate(trainer, run, state, frozen, 1, 3)

    assert jax.tree.structure(unbroken) == jax.tree.structure(resumed)
    for a, b in zip(jax.tree.leaves(unbroken), jax.tree.leaves(resumed), strict=True):
        assert a.sharding == b.sharding
        np.testing.assert_array_equal(a, b)


def small_trainer(net=None, ema=False, start=0, sizes=None):
    """A trainer of a quadratic loss on a transformer's parameters: compiles in no time."""
    net = net or wan.model(CONFIG)

    def loss(params, nets, batch, draws):
        value = 0.5 * optax.tree.norm(params, squared=True) * batch["latents"].mean()
        return value, {"loss": value, "average": optax.tree.norm(nets[AVERAGE])}

    update = Update("model", 1, lambda key, batch: (), loss)
    method = Method({"model": Network(net)}, (update,), Sampled("model", None))
    rule = Optimiser(learning_rate=0.1, clip=1e9)
    mesh = sharding.make_mesh(sizes or {}, jax.devices()[: 8 if sizes else 1])
    average = steps.Ema(0.5 if ema else 0.0, start)
    return steps.Trainer(method, {"model": rule}, average, mesh, seed=1, stage="train", batch=8)


def test_ema_holds_every_key_and_starts_as_a_copy(random_params):
    trainer = small_trainer(ema=True, start=2)
    data = {"latents": np.ones((1, 1), np.float32)}
    with jax.set_mesh(trainer.mesh):
        (step,) = trainer.steps()
        state = trainer.init_state({"model": random_params(wan.model(CONFIG))})
        expected = jax.tree.map(np.asarray, state["params"]["model"])
        for iteration in range(4):
            assert jax.tree.structure(state["ema"]) == jax.tree.structure(state["params"])
            for a, b in zip(
                jax.tree.leaves(state["ema"]["model"]), jax.tree.leaves(expected), strict=True
            ):
                np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
            before = expected
            state, metrics = step(state, {}, trainer.put(data), np.int32(iteration))
            # The loss finds the average as it was before the update.
            assert error(metrics["average"], optax.tree.norm(before)) < 1e-5
            new, decay = state["params"]["model"], 0.0 if iteration < 2 else 0.5
            expected = jax.tree.map(
                lambda a, b, d=decay: d * a + (1 - d) * np.asarray(b), expected, new
            )
    assert "ema" not in small_trainer().abstract()[0]


def test_checkpoints_of_another_model_are_refused(tmp_path):
    trainer = small_trainer(ema=True)
    state = trainer.init_state({"model": trainer.init_net("model")})
    with checkpoint.manager(tmp_path) as manager:
        assert checkpoint.restore(manager, trainer.abstract()[0]) is None
        checkpoint.save(manager, 7, state)
    like = trainer.abstract()[0]["params"]["model"]
    for ema in (False, True):
        back = saved.load_net(tmp_path, "model", like, ema)
        for a, b in zip(
            jax.tree.leaves(back), jax.tree.leaves(state["params"]["model"]), strict=True
        ):
            np.testing.assert_array_equal(a, b)

    narrow = small_trainer(wan.model(WanConfig(16, 48, 4, 2, 2, 2, 8, 8, 8)), ema=True).abstract()[
        0
    ]
    with checkpoint.manager(tmp_path) as manager, pytest.raises(ValueError) as caught:
        checkpoint.restore(manager, narrow)
    assert "is of another model: blocks/" in str(caught.value)
    assert "use the config it was trained with, or another directory" in str(caught.value)
    critic = abstract(critics.model(CONFIG, HeadConfig((1,), 32)))
    with pytest.raises(ValueError, match=r"another model: \d+ missing .*; \d+ unexpected"):
        saved.load_net(tmp_path, "model", critic)
    with pytest.raises(
        ValueError, match="expected an item 'params_generator', found .*'params_model'"
    ):
        saved.load_net(tmp_path, "generator", like)


def test_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="Orbax checkpoints .* in .*absent, found none; run"
    ):
        saved.load_net(tmp_path / "absent", "model", {})


@needs_eight
def test_meshes_that_do_not_fit_are_refused():
    assert sharding.make_mesh({"fsdp": -1, "tensor": 2}, jax.devices()[:8]).shape["fsdp"] == 4
    for sizes in ({"data": 3}, {"data": 2, "fsdp": 2}, {"data": -1, "tensor": 3}):
        with pytest.raises(ValueError, match="product is the number of devices, 8, found .*data"):
            sharding.make_mesh(sizes, jax.devices()[:8])
    with pytest.raises(ValueError, match=r"mesh: expected axes among .* found \['model'\]"):
        sharding.make_mesh({"model": 8}, jax.devices()[:8])
    narrow = wan.model(WanConfig(36, 48, 2, 1, 2, 2, 8, 8, 8))
    with pytest.raises(ValueError, match=r"/kernel \(.*36.*\) does not divide over 8 devices of"):
        small_trainer(narrow, sizes={"fsdp": 8}).abstract()
    with pytest.raises(ValueError, match="axis 'rows' of .* is not in the rules"):
        sharding.spec(("batch", "rows"))
    with pytest.raises(ValueError, match="uses a mesh axis twice"):
        sharding.spec(("heads", "mlp"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.stages.teacher.iteration=3", "did you mean 'stages.teacher.iterations'"),
        ("--config.batch=3", r"no field 'batch'; did you mean 'stages.\w+.batch'"),
        ("--config.latents.frams=3", "no field 'latents.frams'; did you mean 'latents.frames'"),
        ("--config.seed=three", "field 'seed': expected int such as 0, found 'three'"),
        ("--config.shift=big", "field 'shift': expected float .* found 'big'"),
        ("--config.one_forcing.relativistic=3", "'one_forcing.relativistic': expected bool"),
        ("--config.seed", "expected --config.FIELD=VALUE, found '--config.seed'"),
        ("--seed=3", "expected --config.FIELD=VALUE, found '--seed=3'"),
    ],
)
def test_odd_overrides_are_refused(override, message):
    with pytest.raises(ValueError, match=message) as caught:
        configs.load(CONFIGS / "toy.py", [override])
    assert "\n" not in str(caught.value)


def test_overrides_keep_their_types():
    given = ["seed=3", "shift=4", "one_forcing.relativistic=true", "blocks.steps=500"]
    config = configs.load(CONFIGS / "toy.py", [f"--config.{field}" for field in given])
    assert (config.seed, config.one_forcing.relativistic, config.blocks.steps) == (3, True, (500,))
    assert type(config.shift) is float and config.shift == 4
    with pytest.raises(
        FileNotFoundError, match="expected a Python file, found nothing at absent.py"
    ):
        configs.load("absent.py")


@contextlib.contextmanager
def no_compilation_cache():
    """Compiles for real."""
    from jax.experimental.compilation_cache import compilation_cache

    folder = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()


def test_programs_do_not_grow_with_depth():
    latents, sigma, text = (
        jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 2, 2, 4, 4), (1,), (1, 8, 8))
    )
    like = latents, sigma, prompted(text)

    def program(num_layers):
        net = wan.model(WanConfig(32, 48, 2, num_layers, 2, 2, 8, 8, 8, remat="full"))
        return abstract(net), lambda p, *x: net.apply(p, *x).flow.sum()

    def forward(num_layers):
        params, run = program(num_layers)
        lowered = jax.jit(run).lower(params, *like)
        return len(lowered.compile().as_text().splitlines()), len(lowered.as_text().splitlines())

    assert forward(4) == forward(40)

    def backward(num_layers):
        params, run = program(num_layers)
        return len(jax.jit(jax.grad(run)).lower(params, *like).as_text().splitlines())

    assert backward(4) == backward(40)


def causal_ode_method():
    update = causal_ode.regression(wan.model(CONFIG), (1, 1), (1.0, 0.5))
    return Method({"model": Network(wan.model(CONFIG))}, (update,))


def causal_consistency_method():
    net = Network(wan.model(CONFIG))
    update = causal_consistency.distillation(wan.model(CONFIG), (1, 1), flow.grid(4, 3.0), 2.0)
    sampled = Sampled("model", make_plan(2, 1, [1000], 3.0))
    return Method({"model": net, "teacher": net}, (update,), sampled)


def teacher_method():
    return Method(
        {"model": Network(wan.model(CONFIG))}, (teacher.bidirectional(wan.model(CONFIG), 3.0, 0.5),)
    )


@pytest.mark.parametrize(
    "make",
    [
        one_forcing_method,
        teacher_forcing_method,
        causal_ode_method,
        causal_consistency_method,
        teacher_method,
    ],
)
def test_updates_reuse_no_key_and_promote_no_rank(make):
    assert_traces(make_trainer(make()))


def assert_traces(trainer):
    """Programs of a trainer's updates, without compiling them."""
    data = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch(0).items()}
    iteration = jax.ShapeDtypeStruct((), np.int32)
    with (
        jax.set_mesh(trainer.mesh),
        jax.numpy_rank_promotion("raise"),
        jax.debug_key_reuse(True),
    ):
        state, frozen = trainer.abstract()
        for step in trainer.steps():
            assert step.trace(state, frozen, data, iteration).jaxpr.eqns


def test_a_step_moves_nothing_to_or_from_the_host(random_params):
    trainer = make_trainer(teacher_forcing_method())
    with jax.set_mesh(trainer.mesh):
        state, frozen = begin(trainer, random_params)
        data, (step,) = trainer.put(batch(0)), trainer.steps()
        iterations = jax.device_put([np.int32(0), np.int32(1)], data["negative"].sharding)
        with jax.transfer_guard("disallow"):
            for iteration in iterations:
                state, metrics = step(state, frozen, data, iteration)
    assert np.isfinite(metrics["loss"])

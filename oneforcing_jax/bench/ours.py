"""Our side of a comparison with the original: the train step as `train` runs it, on given weights."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from oneforcing_jax import flow
from oneforcing_jax.bench.setting import WORKS, Record, Setting, random_batch
from oneforcing_jax.causal.generate import generate
from oneforcing_jax.causal.plan import ClipDraws, draw
from oneforcing_jax.convert import keys
from oneforcing_jax.convert import wan as wan_keys
from oneforcing_jax.convert.keys import KeyMap
from oneforcing_jax.families.wan21 import WAN_1_3B
from oneforcing_jax.methods import distillation, one_forcing
from oneforcing_jax.models.condition import prompted
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup.dtypes import DTYPES
from oneforcing_jax.setup.run import Run
from oneforcing_jax.system.room import keep_freed_memory
from oneforcing_jax.training.train import trained, trainer


def configuration(setting: Setting) -> Any:
    """The published config of the layout, at the sizes of the comparison."""
    config = configs.load(setting.layout)
    student, teacher = (
        dataclasses.replace(WAN_1_3B, dtype=DTYPES[setting.dtype], **sizes)  # type: ignore[arg-type]
        for sizes in (setting.student_sizes(), setting.teacher_sizes())
    )
    student = dataclasses.replace(student, remat="full")
    config.generator.update(configs.section(student))
    config.critic.update(configs.section(student))
    config.teacher.update(configs.section(teacher))
    config.head.update({"layers": setting.tapped(), "ffn_dim": setting.head_ffn()})
    config.latents.update({"rows": setting.rows, "columns": setting.columns})
    config.stages.one_forcing.batch = 1
    # The average over updates is left out on both sides.
    config.stages.one_forcing.ema.decay = 0.0
    return config


def key_maps(setting: Setting) -> dict[str, KeyMap]:
    """Where the original's tensors of each network belong."""
    return {
        "generator": wan_keys.transformer(setting.layers, "model."),
        "critic": wan_keys.critic(setting.layers, len(setting.tapped())),
        "teacher": wan_keys.transformer(setting.teacher_sizes()["num_layers"], "model."),
    }


class Ours:
    """Generator update, critic update and rollout, with the original's weights."""

    def __init__(self, setting: Setting, weights: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        keep_freed_memory()  # before JAX has a device
        self.described = Run.of(configuration(setting))
        # One clip, one device.
        stage = trained(self.described)["one_forcing"]
        self.trainer = trainer(self.described, "one_forcing", stage, jax.devices()[:1])
        config = self.described.view(one_forcing.Config)
        self.distillation = one_forcing.described(config, self.described)
        self.key_maps = key_maps(setting)
        abstract = self.trainer.whole(*self.trainer.abstract())
        with jax.set_mesh(self.trainer.mesh):
            params = {
                name: jax.tree.map(
                    jnp.asarray, keys.load(self.key_maps[name], tensors, abstract[name], name)
                )
                for name, tensors in weights.items()
            }
            self.state = self.trainer.init_state(params)
            self.frozen = self.trainer.frozen(params)
            self.batch = self.trainer.put(random_batch(setting))
        self.programs: dict[str, Any] = {}

    def _rollout(self, params: Any, text: jax.Array, iteration: jax.Array) -> jax.Array:
        d, given = self.distillation, prompted(text)
        key = jax.random.fold_in(jax.random.key(0), iteration)
        shape = self.batch["latents"].shape
        draws = draw(key, shape, d.plan, d.settings.context_sigma)
        return generate(d.student(params), draws, given, d.plan).latents

    def _arguments(self, work: str) -> tuple[Any, ...]:
        if work == "rollout":
            return self.state["params"]["generator"], self.batch["text"], np.int32(0)
        return self.state, self.frozen, self.batch, np.int32(0)

    def prepare(self) -> dict[str, float]:
        """Compiles everything, in a process set up as for training; seconds of each."""
        updates: dict[str, Any] = dict(
            zip(("generator", "critic"), self.trainer.steps(), strict=True)
        )
        seconds = {}
        with jax.set_mesh(self.trainer.mesh):
            for work in WORKS:
                program = updates.get(work) or jax.jit(self._rollout)
                start = time.perf_counter()
                self.programs[work] = program.lower(*self._arguments(work)).compile()
                seconds[work] = time.perf_counter() - start
        return seconds

    def run(self, work: str) -> float:
        """Seconds of one update, optimiser included, or of one rollout without gradient."""
        start = time.perf_counter()
        made = self.programs[work](*self._arguments(work))
        jax.block_until_ready(made)
        if work != "rollout":
            self.state = made[0]
        return time.perf_counter() - start

    def operations(self) -> dict[str, float]:
        """Floating-point operations of ours, counted from the shapes."""
        size = self.described.latents
        found = one_forcing.operations(self.distillation, size.rows, size.columns)
        return {work: found[work] for work in WORKS}

    def check(self, work: str, record: Record) -> dict[str, float]:
        """Both losses of the same update, and the relative distance of its gradients."""
        draws = self._draws(work, record)
        batch = {name: jnp.asarray(x) for name, x in record.batch.items()}
        update = {u.net: u for u in self.trainer.method.updates}[work]
        nets = self.trainer.whole(self.state, self.frozen)

        def loss(params: Any) -> Any:
            return update.loss(params, nets, batch, draws)[0]

        with jax.set_mesh(self.trainer.mesh):
            value, found = jax.jit(jax.value_and_grad(loss))(nets[work])
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.float32), found)
        expected = keys.load(self.key_maps[work], record.gradients, abstract, "gradients")
        distance = jax.tree.map(lambda a, b: np.asarray(a, np.float32) - b, found, expected)
        return {
            "original_loss": record.loss,
            "our_loss": float(value),
            "gradient_distance": _norm(distance) / _norm(expected),
        }

    def _draws(self, work: str, record: Record) -> Any:
        first, later, count = record.normals[0], record.normals[1:], len(self.distillation.plan)
        blocks = [x.reshape(1, -1, *first.shape[2:]) for x in later[:count]]
        roll = ClipDraws(jnp.asarray(first), jnp.asarray(np.concatenate(blocks, 1)))
        sigmas = [flow.critic_sigma(jnp.asarray(t), self.described.shift) for t in record.timesteps]
        noises = [jnp.asarray(x) for x in later[count:]]
        if work == "generator":
            return distillation.GeneratorDraws(roll, sigmas[0], noises[0], sigmas[1], noises[1])
        # Penalties that the config leaves out draw nothing.
        noises += [jnp.zeros_like(noises[0])] * (4 - len(noises))
        denoise, gan, r1, r2 = noises
        return distillation.CriticDraws(roll, sigmas[0], denoise, sigmas[1], gan, r1, r2)


def _norm(tree: Any) -> float:
    return float(
        np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree)))
    )

"""From config to objects: the one place that reads config fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from oneforcing_jax import flow, sharding
from oneforcing_jax.causal import rollout
from oneforcing_jax.causal.rollout import Plan
from oneforcing_jax.data.encoders import Codec
from oneforcing_jax.data.video import Clip
from oneforcing_jax.methods import Method, causal_ode, flow_matching
from oneforcing_jax.methods import one_forcing as methods
from oneforcing_jax.models.critic import Critic, HeadConfig
from oneforcing_jax.models.wan import WanConfig, WanDiT
from oneforcing_jax.training.optim import Optimiser
from oneforcing_jax.training.steps import Ema, Trainer

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def model(config: ConfigDict, section: str) -> WanConfig:
    """The transformer of a section: "generator", "teacher" or "critic"."""
    values = dict(config[section])
    if values["dtype"] not in DTYPES:
        raise ValueError(
            f"config: field '{section}.dtype': expected one of {sorted(DTYPES)}, found {values['dtype']!r}"
        )
    made = WanConfig(**values | {"dtype": DTYPES[values["dtype"]]})
    made.frame_tokens(config.latents.rows, config.latents.columns)
    return made


def plan(config: ConfigDict) -> Plan:
    """Blocks of a training clip."""
    blocks = config.blocks
    return rollout.make_plan(
        config.latents.frames,
        blocks.frames,
        blocks.steps,
        config.shift,
        blocks.first_frames or None,
        blocks.first_steps or None,
    )


def layout(config: ConfigDict) -> tuple[int, ...]:
    """Frames of each block of a training clip."""
    return tuple(block.frames for block in plan(config))


def clip(config: ConfigDict, codec: Codec) -> Clip:
    """What videos are brought to before they are encoded.

    Raises:
      ValueError: the codec's latents have other channels than the config's.
    """
    latents = config.latents
    if latents.channels != codec.channels:
        raise ValueError(
            f"config: field 'latents.channels': expected the encoder's {codec.channels}, found "
            f"{latents.channels}; choose the config that belongs to this encoder"
        )
    return Clip(*codec.video_shape(latents.frames, latents.rows, latents.columns), config.fps)


def _teacher(config: ConfigDict) -> Method:
    return flow_matching.bidirectional(
        WanDiT(model(config, "teacher")), config.shift, config.prompt_drop_rate
    )


def _teacher_forcing(config: ConfigDict) -> Method:
    net = WanDiT(model(config, "generator"))
    return flow_matching.teacher_forcing(net, layout(config), config.shift, config.prompt_drop_rate)


def _causal_ode(config: ConfigDict) -> Method:
    grid = flow.grid(config.ode.steps, config.shift)
    levels = tuple(float(grid[i]) for i in config.ode.kept)
    return causal_ode.causal_ode(WanDiT(model(config, "generator")), layout(config), levels)


def one_forcing(config: ConfigDict) -> methods.OneForcing:
    """Networks and settings of One-Forcing."""
    settings: dict[str, Any] = dict(config.one_forcing)
    del settings["generator_every"]
    settings |= {name: methods.Penalty(**settings[name]) for name in ("r1", "r2")}
    settings["gradient_blocks"] = settings["gradient_blocks"] or None
    return methods.OneForcing(
        WanDiT(model(config, "generator")),
        WanDiT(model(config, "teacher")),
        Critic(model(config, "critic"), HeadConfig(**config.head)),
        plan(config),
        shift=config.shift,
        **settings,
    )


def _one_forcing(config: ConfigDict) -> Method:
    return methods.make(one_forcing(config), config.one_forcing.generator_every)


METHODS: Mapping[str, Callable[[ConfigDict], Method]] = {
    "teacher": _teacher,
    "teacher_forcing": _teacher_forcing,
    "causal_ode": _causal_ode,
    "one_forcing": _one_forcing,
}


def trainer(config: ConfigDict, stage: ConfigDict, devices: Any = None) -> Trainer:
    """The trainer of one stage.

    Args:
      config: the whole.
      stage: of kind "train".
      devices: of the mesh; None: all.

    Raises:
      ValueError: an unknown method, or a network without an optimiser.
    """
    if stage.method not in METHODS:
        raise ValueError(
            f"config: expected a method among {sorted(METHODS)}, found {stage.method!r}"
        )
    method = METHODS[stage.method](config)
    optimisers = {net: Optimiser(**stage.optimisers[net]) for net in method.trained}
    mesh, size = sharding.make_mesh(config.mesh, devices), config.latents
    for net in method.nets.values():
        tokens = net.config.frame_tokens(size.rows, size.columns)
        sharding.check("the tokens of a frame", tokens, "tokens", mesh)
    return Trainer(
        method,
        optimisers,
        Ema(**stage.ema),
        mesh,
        config.seed,
        stage.batch,
        stage.microbatch,
        stage.offload_optimiser,
    )


def data_fields(config: ConfigDict, stage: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Fields that the batches of a stage have, and the shape of one sample."""
    size = config.latents
    latents = (size.frames, size.channels, size.rows, size.columns)
    trained = model(config, "teacher" if stage.method == "teacher" else "generator")
    fields = {"latents": latents, "text": (trained.text_len, trained.text_dim)}
    if stage.method == "causal_ode":
        fields["trajectory"] = (len(config.ode.kept) + 1, *latents)
    return fields


def optimiser(**changes: Any) -> dict[str, Any]:
    """Fields of an optimiser for a config file."""
    return dataclasses.asdict(Optimiser(**changes))


def wan(size: WanConfig, **changes: Any) -> dict[str, Any]:
    """Fields of a transformer for a config file."""
    changed = dataclasses.replace(size, **{k: v for k, v in changes.items() if k != "dtype"})
    return dataclasses.asdict(changed) | {"dtype": changes.get("dtype", "bfloat16")}

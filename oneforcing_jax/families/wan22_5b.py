"""Wan2.2 TI2V-5B, text and image to video: Wan2.1's network and text encoder over latents of another VAE.

The transformer is told a noise level for every frame: a first latent frame that is given is clean, at 0.
"""

from __future__ import annotations

import dataclasses
import functools

from oneforcing_jax.families import wan21
from oneforcing_jax.families.wan21 import TINY, WAN_1_3B
from oneforcing_jax.models.tiny_decoder import TinyDecoderConfig
from oneforcing_jax.models.vae_layers import WAN22

WAN_5B = dataclasses.replace(
    WAN_1_3B, dim=3072, ffn_dim=14336, num_heads=24, num_layers=30, in_dim=48, out_dim=48
)
SMALL = TinyDecoderConfig(channels=48, patch=2)
FAMILY = dataclasses.replace(
    wan21.FAMILY,
    video=dataclasses.replace(wan21.VIDEO, frames=121, rows=704, columns=1280, fps=24.0),
    channels=48,
    strides=(4, 16),
    frame_levels=True,
    outline=functools.partial(wan21.outline, WAN22, SMALL),
    models={"5b": WAN_5B},
    networks={
        **wan21.FAMILY.networks,
        "transformer": wan21.FAMILY.networks["transformer"]._replace(config=WAN_5B),
        "vae": wan21.FAMILY.networks["vae"]._replace(config=WAN22),
        TINY: wan21.FAMILY.networks[TINY]._replace(config=SMALL),
    },
)

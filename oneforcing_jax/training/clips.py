"""The videos that a run's latents are made from."""

from __future__ import annotations

from oneforcing_jax.data.video import Clip
from oneforcing_jax.errors import InputError
from oneforcing_jax.families.codec import Codec
from oneforcing_jax.setup.run import Run


def clip(run: Run, codec: Codec) -> Clip:
    """What videos are brought to before they are encoded.

    Raises:
      InputError: the codec's latents have other channels than the config's.
    """
    latents = run.latents
    if latents.channels != codec.channels:
        raise InputError(
            f"config: field 'latents.channels': expected the encoder's {codec.channels}, found "
            f"{latents.channels}; choose the config that belongs to this encoder"
        )
    return Clip(*codec.video_shape(latents.frames, latents.rows, latents.columns), run.fps)

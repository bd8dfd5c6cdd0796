"""What the videos of a command are made from, as their files say it. It is known before weights are read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from oneforcing_jax.data.origin import Origin, digest
from oneforcing_jax.errors import InputError
from oneforcing_jax.families import encoders as encoding
from oneforcing_jax.families.records import describe
from oneforcing_jax.generation import pretrained
from oneforcing_jax.generation.jobs import Job
from oneforcing_jax.generation.loading import Loading
from oneforcing_jax.generation.scene import Given, Look
from oneforcing_jax.generation.student import Settings


@dataclasses.dataclass(frozen=True)
class Origins:
    """Origins of the videos of a command.

    Attributes:
      checkpoint: names the weights.
      settings: that all of them share, as JSON holds them.
    """

    checkpoint: str
    settings: Mapping[str, Any]

    @classmethod
    def find(
        cls,
        loading: Loading,
        look: Look,
        given: Given,
        crf: int,
        mark: str | None,
        side: int | None = None,
    ) -> Origins:
        """From the options of a command. Batch, mesh and shard change nothing that is seen.

        Args:
          loading, look, given, crf, mark: options.
          side: pixels of the longer side in the files, where frames are enlarged.

        Raises:
          MissingInput, InputError: no such checkpoint or encoders, weights that another sampler needs, or
            sizes that they cannot take.
        """
        source = pretrained.find(loading.checkpoint, loading.ema, loading.dtype, loading.shift)
        if look.teacher and (given.video or (given.image and not source.family.frame_levels)):
            raise InputError(
                f"--teacher: it makes whole clips and cannot continue {given.continued}; only networks that "
                "are told a noise level for every frame take one image; leave one out"
            )
        source.check(look.teacher)
        folder = loading.encoders or pretrained.find_encoders(loading.checkpoint)
        config = source.config
        found = encoding.load(
            folder, config.text_len, config.dtype, decoder=loading.decoder, weights=False
        )
        settings = look.settings(source, found.codec)
        rows, columns = settings.shape[2:]
        frames, *size = found.codec.video_shape(settings.shape[0], rows, columns)
        said = {"frames": frames, "size": size, "fps": look.fps or source.fps}
        if look.teacher:
            said |= {
                "sampler": loading.sampler, "sampling_steps": loading.sampling_steps_of(source.family),
                "guidance": loading.guidance_of(source.family), "negative": digest(found.negative),
            }  # fmt: skip
        else:
            said |= blocks(settings.taken(given.continued is not None))
        said |= {
            "shift": source.shift, "window": loading.window, "sink": loading.sink,
            "relative": loading.relative, "ema": loading.ema, "dtype": config.dtype.name,
            "network": digest(json.dumps(describe(config), default=str)),
            "encoders": digest(f"{found.codec.digest()} {found.text.digest()}"),
            "precision": str(loading.precision) if loading.precision else None,
            "lora": [one.said for one in loading.lora] or None,
            "decoder": loading.decoder, **given.digests(), "crf": crf,
            "mark": None if mark is None else digest(f"mark {mark}"), "side": side,
        }  # fmt: skip
        return cls(source.identity, {n: v for n, v in said.items() if v is not None})

    def of(self, job: Job) -> Origin:
        """What a video's file is to say. Rows of files belong to it, and noise from a file has no seed."""
        settings, seed, sample = dict(self.settings), job.seed, job.sample
        if "prompt_embeds" in settings:
            settings["prompt_row"] = job.line
        if "noise_file" not in settings:
            return Origin(self.checkpoint, job.prompt.embedded, seed, sample, settings)
        settings["noise_row"] = job.number
        return Origin(self.checkpoint, job.prompt.embedded, settings=settings)

    @property
    def steps(self) -> str:
        """The steps that a video takes, in words."""
        said = self.settings
        if "sampler" in said:
            return f"{said['sampling_steps']} of {said['sampler']}"
        return in_words(said)


def blocks(settings: Settings) -> dict[str, Any]:
    """Layout and steps, as a file says them."""
    names = ("block_frames", "steps", "first_frames", "first_steps")
    return {name: getattr(settings, name) for name in names}


def in_words(said: Mapping[str, Any]) -> str:
    """The steps of `blocks` in words: their timesteps."""
    each, first = (",".join(f"{t:g}" for t in said[name]) for name in ("steps", "first_steps"))
    return each if each == first else f"{first} in the first block, {each} in the others"

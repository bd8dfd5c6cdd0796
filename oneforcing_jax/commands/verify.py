"""Compares converted weights with the files that they were converted from, as diffusers computes with these.

    oneforcing verify weights/wan_1.3b --against diffusers
    oneforcing verify weights/wan_1.3b --against diffusers --published Wan-AI/Wan2.1-T2V-1.3B-Diffusers

Each network of the folder is called beside the published one: embeddings of two prompts, encoding and
decoding of a video, one flow of the transformer, and a clip of a few guided steps from the same noise. All is
computed in float32, theirs on processors and ours on this machine's devices, and one network is in memory at
a time: 23 GB for the text encoder, which --only can leave out. A line gives each error, the norm of the
difference to the norm of theirs. The exit code is 1 if any is above its limit. Extra: verify.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from oneforcing_jax import families, sharding
from oneforcing_jax.convert import sizes, source, theirs
from oneforcing_jax.convert.source import PARTS, Part
from oneforcing_jax.convert.to_orbax import REVISION
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.families import records
from oneforcing_jax.families.codec import pad
from oneforcing_jax.families.records import MODEL, TOKENIZER
from oneforcing_jax.families.wan_text import WanText, load_tokenizer
from oneforcing_jax.generation import pretrained, samplers
from oneforcing_jax.models import umt5, vae
from oneforcing_jax.models.condition import prompted
from oneforcing_jax.models.umt5 import UMT5Config
from oneforcing_jax.models.vae import WanVAE
from oneforcing_jax.models.vae_layers import VAEConfig
from oneforcing_jax.system.command import Help, any_path, ending
from oneforcing_jax.system.files import MORE

# What the prompt is cleaned of, such as entities and runs of spaces, belongs to the comparison.
PROMPT = "a red  square &amp; a cat moving left"
# Latents of what is compared: frames, rows, columns. Sides differ, so that none can stand for another.
LATENTS = (3, 8, 12)
SIGMA, STEPS = 0.7, 4
# Errors that are allowed: of float32 in another order; the same after a clip's steps, each of which
# multiplies it by the guidance; and of weights that were rounded to bfloat16 when they were converted.
EXACT, GROWN, ROUNDED = 1e-3, 1e-2, 5e-2


class Row(NamedTuple):
    """One comparison: of which part, of what in it, its error, and the error that is allowed."""

    part: str
    what: str
    error: float
    limit: float

    @property
    def equal(self) -> bool:
        """Whether the error is allowed; one that is no number never is."""
        return self.error <= self.limit


class Sample(NamedTuple):
    """What is made for the next part: their embeddings of prompt and negative, [1, s, d] each, and latents of
    a clip of ours and of theirs, [1, f, c, y, x] each."""

    words: Any = None
    clips: Any = None


def compare(folder: Path, published: str | None, only: Sequence[str] | None) -> Iterator[Row]:
    """Compares the networks of a converted folder with published files, part by part.

    Args:
      folder: of tools/convert_wan.py.
      published: a folder or repository, see `source.locate`; None: what was converted.
      only: parts of `PARTS`; None: those that the folder has.

    Raises:
      MissingInput, InputError: a part that is not there, here or among the published files; damage; too
        little memory.
    """
    parts = _parts(folder, published, only)
    found = Sample()
    if "text" in parts:
        found, rows = _text(folder, parts["text"])
        yield from rows
    if "transformer" in parts:
        found, rows = _transformer(folder, parts["transformer"], found)
        yield from rows
    if "vae" in parts:
        yield from _vae(folder, parts["vae"], found)


def _parts(folder: Path, published: str | None, only: Sequence[str] | None) -> dict[str, Part]:
    """The published files of each part that is to be compared."""
    source.check_parts(only)
    there = [part for part in PARTS if (folder / part / MODEL).is_file()]
    missing = [part for part in only or () if part not in there]
    if missing or not there:
        what = f"no {missing[0]}" if missing else "none of them"
        raise MissingInput(
            f"{folder}: expected a folder of tools/convert_wan.py with {', '.join(only or PARTS)}, found "
            f"{what}; convert the published weights into it"
        )
    parts = {}
    for part in only or there:
        said = records.read(folder / part)
        name = published or str(said.get("source"))
        commit = None if published else said.get(MORE, {}).get(REVISION)
        path, _ = source.locate(name, [part], commit)
        if not path.is_dir():
            raise InputError(
                f"{path}: expected the folder of a Wan model, found a file; name it with --published"
            )
        (parts[part],) = source.parts(path, [part])
    return parts


def _limit(folder: Path, part: str, exact: float) -> float:
    rounded = records.read(folder / part).get("dtype") == "bfloat16"
    return max(ROUNDED, exact) if rounded else exact


def _error(found: Any, expected: Any) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape:
        raise InputError(
            f"expected arrays of one shape from both sides, found {found.shape} of ours and "
            f"{expected.shape}; convert the published weights again"
        )
    return float(np.linalg.norm(found - expected) / np.maximum(np.linalg.norm(expected), 1e-12))


def _mesh() -> Any:
    return sharding.make_mesh({"data": 1}, jax.local_devices()[:1])


def _scheduler(shift: float) -> Any:
    import diffusers

    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )


def _text(folder: Path, part: Part) -> tuple[Sample, list[Row]]:
    """Embeddings of the prompt and of the negative one, with each side's own cleaning and tokens."""
    import diffusers

    if part.tokenizer is None:
        raise InputError(f"{part}: expected a tokenizer beside it, found none; copy it there")
    length, family = _text_length(folder), families.find(families.FIRST)
    prompts = PROMPT, family.video.negative
    pipeline = diffusers.WanPipeline(
        load_tokenizer(part.tokenizer), theirs.model(part), None, _scheduler(1.0), None
    )
    expected = [
        array.numpy()
        for array in pipeline.encode_prompt(*prompts, max_sequence_length=length, device="cpu")
    ]
    del pipeline
    config, params, _ = records.net(
        folder / "text", _mesh(), UMT5Config, umt5.init_params, jnp.float32
    )
    text = WanText(config, params, load_tokenizer(folder / "text" / TOKENIZER), length)
    limit = _limit(folder, "text", EXACT)
    rows = [
        Row("text", what, _error(pad(text.encode(prompt), length)[None], array), limit)
        for what, prompt, array in zip(("prompt", "negative"), prompts, expected, strict=True)
    ]
    return Sample(expected), rows


def _text_length(folder: Path) -> int:
    """The tokens that the transformer reads."""
    if (folder / "transformer" / MODEL).is_file():
        return pretrained.find(folder).config.text_len
    return sizes.TEXT_LEN


def _transformer(folder: Path, part: Part, found: Sample) -> tuple[Sample, list[Row]]:
    """One flow at one noise level, and the latents of a clip of guided steps."""
    import diffusers
    import torch

    made = pretrained.find(folder, dtype="float32")
    config, video, random = made.config, made.family.video, np.random.default_rng(0)
    frames, rows, columns = LATENTS
    noise = random.normal(size=(1, frames, config.in_dim, rows, columns)).astype(np.float32)
    shape = (1, config.text_len, config.text_dim)
    words = found.words or [random.normal(size=shape).astype(np.float32) for _ in range(2)]

    net = theirs.model(part)
    inputs, text = torch.from_numpy(noise).transpose(1, 2), [torch.from_numpy(x) for x in words]
    with torch.no_grad():
        flow = net(inputs, torch.full((1,), 1000 * SIGMA), text[0], return_dict=False)[0]
    scheduler = _scheduler(made.shift)
    pipeline = diffusers.WanPipeline(None, None, None, scheduler, net)
    pipeline.set_progress_bar_config(disable=True)
    clip = pipeline(
        prompt_embeds=text[0], negative_prompt_embeds=text[1], latents=inputs,
        num_frames=4 * frames - 3, height=8 * rows, width=8 * columns,
        num_inference_steps=STEPS, guidance_scale=video.guidance, output_type="latent",
    ).frames  # fmt: skip
    expected = [array.transpose(1, 2).numpy() for array in (flow, clip)]
    del net, pipeline, flow, clip

    params, prompt = made.params(), prompted(jnp.asarray(words[0]))
    # Their grid of noise levels, which is not quite Wan's own: what is compared is the network.
    sampler = samplers.unipc(scheduler.sigmas.numpy())
    with sharding.using(_mesh()):
        ours = jax.jit(made.model.apply)(params, noise, np.full(1, SIGMA, np.float32), prompt).flow
        clips = samplers.sample(
            made.model, params, jnp.asarray(noise), prompt, prompted(jnp.asarray(words[1][0])),
            sampler, guidance=video.guidance - 1,
        )  # fmt: skip
    compared = [
        Row("transformer", "flow", _error(ours, expected[0]), _limit(folder, part.name, EXACT)),
        Row("transformer", "clip", _error(clips, expected[1]), _limit(folder, part.name, GROWN)),
    ]
    return found._replace(clips=(np.asarray(clips), expected[1])), compared


def _vae(folder: Path, part: Part, found: Sample) -> Iterator[Row]:
    """Latents of a video, the video of these, and the pixels of both sides' clips."""
    import torch

    random, (frames, rows, columns) = np.random.default_rng(1), LATENTS
    steps = np.linspace(0, 6, 4 * frames - 3)[:, None, None, None]
    ramp = np.linspace(0, 4, 8 * rows)[:, None] + np.linspace(0, 7, 8 * columns)
    waves = np.sin(steps + np.arange(3)[:, None, None] + ramp)
    video = (0.8 * waves + random.uniform(-0.2, 0.2, waves.shape)).astype(np.float32)[None]

    net = theirs.model(part)
    mean, std = (
        torch.tensor(values)[:, None, None, None]
        for values in (net.config.latents_mean, net.config.latents_std)
    )
    with torch.no_grad():
        latents = net.encode(torch.from_numpy(video).transpose(1, 2)).latent_dist.mode()
        given = [((latents - mean) / std).transpose(1, 2).numpy()]
        given += [found.clips[1]] if found.clips else []
        expected = [
            net.decode(torch.from_numpy(x).transpose(1, 2) * std + mean).sample for x in given
        ]
        expected = [x.transpose(1, 2).numpy() for x in expected]
    del net, latents

    config, params, _ = records.net(
        folder / "vae", _mesh(), VAEConfig, vae.init_params, jnp.float32
    )
    model = WanVAE(config)
    call = jax.jit(model.apply, static_argnames="method")
    encoded = call({"params": params}, video, method="encode")
    limit = _limit(folder, "vae", EXACT)
    yield Row("vae", "encode", _error(encoded, given[0]), limit)
    decode = [given[0], *([found.clips[0]] if found.clips else [])]
    limits = {"decode": limit, "clip's pixels": max(GROWN, limit)}
    for (what, allowed), x, theirs_ in zip(limits.items(), decode, expected, strict=False):
        pixels = vae.clamp(call({"params": params}, x, method="decode"))
        yield Row("vae", what, _error(pixels, theirs_), allowed)


def main(arguments: Sequence[str] | None = None, prog: str = "oneforcing verify") -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=Help)
    parser.add_argument("folder", type=any_path, help="of convert")
    parser.add_argument("--against", required=True, choices=["diffusers"], help="whose networks")
    parser.add_argument("--published", help="folder or OWNER/NAME; default: what was converted")
    parser.add_argument("--only", help=f"parts of the folder, among {','.join(PARTS)}")
    given = parser.parse_args(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax; what matters of it is raised.
    only = None if given.only is None else given.only.split(",")
    rows = list[Row]()
    with ending("nothing was changed"), jax.default_matmul_precision("highest"):
        for row in compare(given.folder, given.published, only):
            rows.append(row)
            verdict = "equal" if row.equal else "differs"
            print(
                f"{row.part:<13}{row.what:<15}error {row.error:.1e}  limit {row.limit:.0e}  {verdict}",
                flush=True,
            )
        import diffusers

        wrong = [f"{row.part} {row.what}" for row in rows if not row.equal]
        said = f"differs in {', '.join(wrong)}" if wrong else f"equal in {len(rows)} of {len(rows)}"
        print(f"{given.folder}: {said}, against diffusers {diffusers.__version__}")
    if wrong:
        sys.exit(1)

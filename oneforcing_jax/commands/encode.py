"""Encodes captioned videos into a store of latents and prompt embeddings, for training.

    oneforcing encode --videos clips --captions captions.jsonl \\
        --checkpoint weights --out store --config configs/framewise.py

--checkpoint is what tools/convert_wan.py wrote (vae/ and text/ in it), or the world of a toy run.
Frames, size and rate are the config's: each video is resized until it covers the frame, cropped in
the middle, and taken from its beginning at the config's rate; with --clips=scenes it is cut where a scene
ends, and each scene gives as many clips as fit, but for stills and repetitions. Fields of the config can be
overridden (--config.latents.frames=13). The same command continues; videos that cannot be used are left out,
listed at the end, and tried again by the next run. Several processes, or machines with one disk, share the
work with --distributed (docs/launch), or as commands of their own with --shard I/N.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from oneforcing_jax.data.encode import CLIPS, encode, summary
from oneforcing_jax.errors import InputError
from oneforcing_jax.families import encoders as encoding
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup import parts
from oneforcing_jax.setup.run import Run
from oneforcing_jax.system import processes
from oneforcing_jax.system.command import Help, any_path, share
from oneforcing_jax.training.clips import clip
from oneforcing_jax.training.train import student


def main(arguments: Sequence[str] | None = None, prog: str = "oneforcing encode") -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=Help)
    parser.add_argument("--videos", required=True, type=any_path, help="folder of video files")
    parser.add_argument(
        "--captions", required=True, type=any_path, help="JSONL or CSV: video, caption"
    )
    parser.add_argument("--checkpoint", required=True, type=any_path, help="folder of the encoders")
    parser.add_argument("--out", required=True, type=any_path, help="folder of the store")
    parser.add_argument("--config", default="framewise", type=any_path, help="of the sizes")
    parser.add_argument(
        "--clips",
        choices=CLIPS,
        default=CLIPS[0],
        help="of a video: its first, or those of its scenes",
    )
    parser.add_argument("--shard", default="0/1", help="I/N, of N commands the I-th")
    parts.add_option(parser)
    processes.add_options(parser)
    given, overrides = parser.parse_known_args(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax; what matters of it is raised.
    with processes.ending("the same command continues after what is finished"):
        processes.join(given)
        part = share(given.shard)
        run = Run.of(configs.load(given.config, overrides))
        reader = student(run).config
        encoders = encoding.load(given.checkpoint, reader.text_len)
        size = clip(run, encoders.codec)
        if reader.text_dim != encoders.text.dim:
            raise InputError(
                f"config: expected a network with text_dim {encoders.text.dim}, as the text encoder's, found "
                f"{reader.text_dim}; choose the config that belongs to this encoder"
            )
        store = encode(
            given.videos,
            given.captions,
            given.checkpoint,
            encoders,
            size,
            given.out,
            part,
            given.clips,
        )
        if processes.is_first():
            print(summary(store))

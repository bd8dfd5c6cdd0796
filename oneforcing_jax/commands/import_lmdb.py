"""Imports an LMDB of the original (latents and prompts) into a store, for training.

    oneforcing import --lmdb FOLDER --checkpoint weights --out store

--checkpoint is what `oneforcing convert` wrote: its text encoder embeds the prompts. The same command
continues; missing or damaged rows are left out and listed. For several processes give each --shard I/N.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from oneforcing_jax.data.encode import summary
from oneforcing_jax.data.lmdb_rows import import_lmdb
from oneforcing_jax.families import encoders as encoding
from oneforcing_jax.setup import parts
from oneforcing_jax.system.command import Help, any_path, count, ending, share


def main(arguments: Sequence[str] | None = None, prog: str = "oneforcing import") -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=Help)
    parser.add_argument(
        "--lmdb", required=True, type=any_path, help="folder with data.mdb, or of such"
    )
    parser.add_argument("--checkpoint", required=True, type=any_path, help="folder of the encoders")
    parser.add_argument("--out", required=True, type=any_path, help="folder of the store")
    parser.add_argument("--text_len", type=count, help="rows of an embedding; default as published")
    parser.add_argument("--shard", default="0/1", help="I/N, of N processes the I-th")
    parts.add_option(parser)
    given = parser.parse_args(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)
    with ending("the same command continues after what is finished"):
        part = share(given.shard)
        encoders = encoding.load(given.checkpoint, given.text_len)
        store = import_lmdb(given.lmdb, given.checkpoint, encoders, given.out, part)
        print(summary(store))

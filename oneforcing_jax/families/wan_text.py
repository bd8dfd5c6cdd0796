"""Prompts to embeddings as Wan reads them: cleaning, tokens, and the UMT5 encoder over batches.

    tokenizer = load_tokenizer("wan/google/umt5-xxl")
    embeddings, lengths = embed_prompts(config, params, tokenizer, ["a cat", "a dog"], 512)

`transformers` and `ftfy` are imported where they are used; the extra `wan` installs them.
"""

from __future__ import annotations

import functools
import html
import importlib
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from oneforcing_jax import sharding
from oneforcing_jax.errors import InputError, MissingPackage
from oneforcing_jax.families.codec import Call
from oneforcing_jax.models import umt5
from oneforcing_jax.models.umt5 import UMT5Config, UMT5Encoder
from oneforcing_jax.system import places, room

# Programs are compiled for lengths that are multiples of this. There are four of them, and short prompts do
# not pay for 512 tokens. Padded keys are masked, so the embeddings do not depend on it.
_LENGTH_STEP = 128


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackage(
            f"text prompts need the package {name}, which is not installed here: "
            'pip install "oneforcing_jax[wan]"'
        ) from error


def clean_prompt(prompt: str) -> str:
    """The prompt as the text encoder was trained to read it; case is kept.

    Repairs broken Unicode (which also makes full-width forms half-width and straightens quotes),
    resolves HTML entities twice, and makes each run of white space one space.
    """
    text = _import("ftfy").fix_text(prompt)
    text = html.unescape(html.unescape(text)).strip()
    return re.sub(r"\s+", " ", text).strip()


def load_tokenizer(folder: str | os.PathLike[str]) -> Any:
    """The `transformers` tokenizer saved in a folder; nothing else is downloaded.

    Raises:
      InputError: there is no such folder, or its files are damaged.
      MissingPackage: `transformers` is not installed.
    """
    if not places.path(folder).is_dir():
        raise InputError(
            f"no tokenizer folder at {os.fspath(folder)!r}; give the folder of the checkpoint that "
            "holds tokenizer.json (google/umt5-xxl in the Wan2.1 files, tokenizer in diffusers')."
        )
    with places.on_disk(places.path(folder)) as here:
        read = _import("transformers").AutoTokenizer.from_pretrained
        try:
            return read(here, local_files_only=True, trust_remote_code=False)
        except (ImportError, KeyboardInterrupt):
            raise
        except (
            BaseException
        ) as error:  # the library raises whatever damaged files make of it, panics too
            said = " ".join(str(error).split())[:160]
            raise InputError(
                f"{os.fspath(folder)}: expected the files of a tokenizer, found damaged ones ({said}); "
                "copy them again"
            ) from error


def _token_ids(tokenizer: Any, prompts: Sequence[str], length: int) -> list[list[int]]:
    """Ids of each cleaned prompt, end token included, not padded."""
    if isinstance(prompts, str):
        raise TypeError("prompts is one string; give a list of prompts, such as [prompt].")
    if not prompts:
        return []
    texts = [clean_prompt(prompt) for prompt in prompts]
    rows = tokenizer(texts, add_special_tokens=True, truncation=False, verbose=False)["input_ids"]
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) > length:
            raise InputError(
                f"the prompt {prompt[:40]!r}... has {len(row)} tokens, more than the {length} that "
                f"the model reads; shorten it by {len(row) - length} tokens or more."
            )
    return rows


def _pad_ids(rows: Sequence[Sequence[int]], count: int, length: int) -> tuple[Any, Any]:
    """Ids and mask, each [count, length] int32; the pad id is 0."""
    ids, mask = np.zeros((2, count, length), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask


def tokenize(tokenizer: Any, prompts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask of prompts, each [b, length] int32; the end token counts as valid.

    Raises:
      InputError: a prompt has more than `length` tokens.
    """
    return _pad_ids(_token_ids(tokenizer, prompts, length), len(prompts), length)


@functools.lru_cache(maxsize=8)
def _encoder(config: UMT5Config) -> Callable[[Any, Any, Any], jax.Array]:
    model = UMT5Encoder(config)
    return jax.jit(
        lambda params, ids, mask: model.apply({"params": params}, ids, mask, method="encode")
    )


def embed_prompts(
    config: UMT5Config,
    params: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    length: int,
    batch: int = 8,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Embeddings of prompts, without padding.

    Args:
      config: of the encoder.
      params: of `UMT5Encoder`.
      tokenizer: from `load_tokenizer`.
      prompts: as typed; they are cleaned here.
      length: the most tokens a prompt may have, the end token included.
      batch: prompts encoded at once.

    Returns:
      A list of [tokens, d] arrays in the compute dtype, and the lengths [b] int32.

    Raises:
      InputError: a prompt has more than `length` tokens.
    """
    rows = _token_ids(tokenizer, prompts, length)
    lengths = np.asarray([len(row) for row in rows], np.int32)
    count = max(1, min(batch, len(rows)))
    encode = _encoder(config)
    embeddings: list[np.ndarray] = []
    for start in range(0, len(rows), count):
        group = rows[start : start + count]
        longest = max(len(row) for row in group)
        padded = min(length, -(-longest // _LENGTH_STEP) * _LENGTH_STEP)
        out = np.asarray(encode(params, *_pad_ids(group, count, padded)))
        embeddings += [out[i, : len(row)] for i, row in enumerate(group)]
    return embeddings, lengths


class WanText:
    """The UMT5 encoder with its tokenizer and the original's cleaning of prompts.

    Args:
      config: its sizes.
      params: its weights, or what reads them onto a mesh when they are first needed.
      tokenizer: from `load_tokenizer`.
      length: the most tokens of a prompt.
      fingerprint: of their source.
      mesh: where weights that are yet to be read will lie; None: on all devices that divide the width.
    """

    dtype: ClassVar[str] = "bfloat16"

    def __init__(
        self,
        config: UMT5Config,
        params: Any,
        tokenizer: Any,
        length: int,
        fingerprint: str = "",
        mesh: Mesh | None = None,
    ) -> None:
        self.config, self._params, self.tokenizer = config, params, tokenizer
        self.length, self._fingerprint, self._mesh = length, fingerprint, mesh

    @property
    def params(self) -> Any:
        """The weights, which are read when they are first asked for."""
        if callable(self._params):
            mesh = self._mesh or mesh_of(self.config, jax.local_devices())
            self._params = self._params(mesh)
        return self._params

    def ready(self) -> None:
        """Reads the weights, if that was not done before."""
        _ = self.params

    def on_host(self) -> WanText:
        """The same with its weights in the memory of the host, whose processors encode prompts.

        Raises:
          InputError: JAX was told to use no processors.
        """
        mesh = mesh_of(self.config, room.processors("text_encoder")[:1])
        return WanText(
            self.config, self._params, self.tokenizer, self.length, self._fingerprint, mesh
        )

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.config.width

    def encode(self, prompt: str) -> np.ndarray:
        """Embedding [n, dim] of a prompt, without padding.

        Raises:
          InputError: a prompt of more than `length` tokens.
        """
        embeddings, _ = embed_prompts(
            self.config, self.params, self.tokenizer, [prompt], self.length
        )
        return embeddings[0]

    def check(self, prompt: str) -> None:
        """Refuses what `encode` would, without the transformer."""
        tokenize(self.tokenizer, [prompt], self.length)

    def programs(self, devices: Sequence[Any]) -> list[Call]:
        """The encoder of one prompt of the greatest length, over all devices that divide its width."""
        config, mesh = self.config, mesh_of(self.config, devices)
        boxed = jax.eval_shape(lambda: umt5.init_params(config, jax.random.key(0)))
        abstract = sharding.abstract(boxed, mesh)
        params = jax.tree.map(lambda leaf: leaf.update(dtype=config.dtype), abstract)
        ids = jax.ShapeDtypeStruct((1, self.length), jnp.int32, sharding=sharding.named(mesh))
        return [Call("prompt", 1, _encoder(config), (params, ids, ids), mesh, params)]

    def digest(self) -> str:
        """A short fingerprint of the weights' source."""
        return self._fingerprint


def mesh_of(config: UMT5Config, devices: Sequence[Any]) -> Mesh:
    """All of the devices, as far as they divide the width of the text encoder."""
    count = math.gcd(len(devices), config.width)
    return sharding.make_mesh({"fsdp": count}, devices[:count])

"""Toy videos and captions into a store of latents and text embeddings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from oneforcing_jax.data.captions import pair
from oneforcing_jax.data.store import NEGATIVE_TEXT, Store
from oneforcing_jax.data.video import read_video
from oneforcing_jax.toy.codec import Codec
from oneforcing_jax.toy.text import TextEncoder

# Names inside the store, next to its arrays: it carries all that is needed to read it.
CODEC_FILE = "codec.npz"
TEXT_FOLDER = "text_encoder"


def ingest(
    videos_dir: str | Path,
    captions_path: str | Path,
    codec: Codec,
    text_encoder: TextEncoder,
    store_path: str | Path,
) -> Store:
    """Encodes a folder of videos; to continue after an error or a kill, call it again.

    Sample i is the i-th video by file name: `latents` float32 [f, c, y, x] and `text` float32
    [length, dim]. Beside the samples the store gets the shared array `negative_text` [length,
    dim], the codec and the text encoder. All videos must have the sizes of the first.

    Args:
      videos_dir, captions_path: see `captions.pair`.
      codec, text_encoder: what encodes them; a store is filled with one pair of them.
      store_path: the folder of the store.

    Returns:
      The store, complete.

    Raises:
      FileNotFoundError: videos or captions are missing.
      ValueError: a video or caption that cannot be encoded, named; or a store that was begun
        with other videos, captions or encoders. Samples that were written stay.
    """
    pairs = pair(videos_dir, captions_path)
    captions = [caption for _, caption in pairs]
    try:
        texts = text_encoder.encode_padded(captions)
    except ValueError as error:
        raise ValueError(f"{captions_path}: {error}") from None
    first, fps = read_video(pairs[0][0])
    frames, rows, columns = first.shape[:3]
    try:
        latent_shape = codec.latent_shape(frames, rows, columns)
    except ValueError as error:
        raise ValueError(f"{pairs[0][0]}: {error}") from None

    store_path = Path(store_path)
    store = Store.create(
        store_path,
        len(pairs),
        {
            "latents": (latent_shape, "float32"),
            "text": ((text_encoder.length, text_encoder.dim), "float32"),
        },
        {
            "source": _digest(pairs),
            "video": {"frames": frames, "rows": rows, "columns": columns, "fps": fps},
            "codec": {
                "channels": codec.channels,
                "patch": codec.patch,
                "digest": codec.digest(),
            },
            "text": {"digest": text_encoder.digest()},
        },
    )
    codec.save(store_path / CODEC_FILE)
    text_encoder.save(store_path / TEXT_FOLDER)
    store.write_shared(NEGATIVE_TEXT, text_encoder.encode_padded([""])[0])

    missing = np.flatnonzero(~store.done())
    with tqdm(
        total=len(pairs),
        initial=len(pairs) - len(missing),
        desc=f"encode {videos_dir}",
        unit="video",
        mininterval=1.0,
    ) as progress:
        for index in missing:
            file = pairs[index][0]
            video, _ = read_video(file)
            if video.shape != first.shape:
                raise ValueError(
                    f"{file}: expected {_sizes(first)} as in {pairs[0][0].name}, found "
                    f"{_sizes(video)}; cut and resize it, and run again"
                )
            latents = np.asarray(codec.encode(video))
            store.write(int(index), {"latents": latents, "text": texts[index]})
            progress.update()
    store.require_complete()
    return store


def _digest(pairs: Sequence[tuple[Path, str]]) -> str:
    """A fingerprint of the videos' names and captions, in order."""
    content = json.dumps([[file.name, caption] for file, caption in pairs])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _sizes(video: np.ndarray) -> str:
    frames, rows, columns = video.shape[:3]
    return f"{frames} frames of {rows}x{columns}"

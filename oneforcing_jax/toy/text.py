"""A frozen text encoder for toy captions: one fixed vector a word, and a little of its position.

The vectors are near orthogonal, so that whatever reads them can tell the words apart from the
first step. Nothing here is learned but the list of words.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.families.codec import Call
from oneforcing_jax.system import bounded, places
from oneforcing_jax.system.files import write_whole

DIM = 32
LENGTH = 8
# Its name in a folder of encoders.
FOLDER = "text_encoder"
POSITION_SCALE = 0.25
UNKNOWN = "<unknown>"
# Characters of a caption in an error.
SHOWN = 60


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder:
    """Captions to embeddings.

    Attributes:
      tokenizer: words to numbers; white space separates words, case does not matter.
      words: float32 [vocabulary, dim], unit variance a word.
      positions: float32 [length, dim], added to the words in turn.
    """

    tokenizer: Tokenizer
    words: np.ndarray
    positions: np.ndarray

    dtype: ClassVar[str] = "float32"

    @property
    def length(self) -> int:
        """The most tokens a caption may have."""
        return self.positions.shape[0]

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.positions.shape[1]

    @classmethod
    def train(
        cls, captions: Sequence[str], dim: int = DIM, length: int = LENGTH, seed: int = 0
    ) -> TextEncoder:
        """Makes an encoder whose vocabulary is the words of the captions.

        Raises:
          InputError: no words, an odd or tiny dim, or a caption of more than `length` words.
        """
        check_sizes(captions, dim, length)
        tokenizer = Tokenizer(models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(special_tokens=[UNKNOWN], show_progress=False)
        tokenizer.train_from_iterator(captions, trainer)
        count = tokenizer.get_vocab_size()
        if count < 2:
            raise InputError("expected captions with words, found none; pass the captions")
        encoder = cls(tokenizer, _directions(count, dim, seed), _positions(length, dim))
        for caption in captions:
            encoder.encode(caption)
        return encoder

    def encode(self, caption: str) -> np.ndarray:
        """Embeds one caption without padding, float32 [n_tokens, dim].

        The empty caption is the negative prompt and has zero tokens.

        Raises:
          InputError: nothing but white space, an unknown word, or more than `length` tokens.
        """
        if caption and not caption.strip():
            raise InputError(
                f"expected words, found white space {caption!r}; the negative prompt is ''"
            )
        tokens = self.tokenizer.encode(caption)
        unknown = [
            caption[slice(*tokens.offsets[place])]
            for place, number in enumerate(tokens.ids)
            if number == self.tokenizer.token_to_id(UNKNOWN)
        ]
        if unknown:
            known = sorted(self.tokenizer.get_vocab().keys() - {UNKNOWN})
            raise InputError(
                f"{caption[:SHOWN]!r}: expected words of {known}, found {unknown[0][:SHOWN]!r}; use others"
            )
        if len(tokens.ids) > self.length:
            raise InputError(
                f"{caption[:SHOWN]!r}: expected {self.length} tokens or fewer, found {len(tokens.ids)}; "
                "shorten it"
            )
        return self.words[np.array(tokens.ids, int)] + self.positions[: len(tokens.ids)]

    def check(self, prompt: str) -> None:
        """Refuses what `encode` would."""
        self.encode(prompt)

    def programs(self, devices: Sequence[Any]) -> list[Call]:
        """None: it runs on the host."""
        return []

    def digest(self) -> str:
        """A short fingerprint: encoders with equal digests give equal embeddings."""
        content = self.tokenizer.to_str().encode() + self.words.tobytes() + self.positions.tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json and embeddings.npz into a folder, made with its parents.

        Raises:
          InputError: the folder cannot be written.
        """
        folder = places.path(folder)
        try:
            places.make(folder)
        except OSError as error:
            raise InputError(f"cannot make {folder}: {error.strerror}; choose another") from error
        content = io.BytesIO()
        np.savez(content, words=self.words, positions=self.positions)
        write_whole(folder / "tokenizer.json", self.tokenizer.to_str(pretty=True).encode())
        write_whole(folder / "embeddings.npz", content.getvalue())


def check_sizes(captions: Sequence[str], dim: int, length: int) -> None:
    """Refuses sizes that no encoder of the captions can have.

    Raises:
      InputError: an odd or tiny dim, or a caption of more than `length` words.
    """
    if dim < 2 or dim % 2:
        raise InputError(f"expected an even dim of texts of 2 or more, found {dim}")
    longest = max((len(caption.split()) for caption in captions), default=0)
    if length < max(1, longest):
        raise InputError(
            f"expected texts of {max(1, longest)} tokens or more, as the captions have, found {length}"
        )


def load(folder: str | Path) -> TextEncoder:
    """Reads what `TextEncoder.save` wrote.

    Raises:
      MissingInput: one of the two files is missing.
      InputError: one of them is damaged, or they do not belong together.
    """
    folder = places.path(folder)
    for name in ("tokenizer.json", "embeddings.npz"):
        if not (folder / name).is_file():
            raise MissingInput(f"no text encoder in {folder}: {name} is missing")
    try:
        tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
        known = tokenizer.get_vocab()
        if sorted(known.values()) != list(range(len(known))) or UNKNOWN not in known:
            raise ValueError("numbers of words with holes")
    except Exception:  # noqa: BLE001, the library raises it bare for whatever it cannot parse
        raise InputError(
            f"{folder / 'tokenizer.json'}: expected a tokenizer, found another file; train it again"
        ) from None
    try:
        file = bounded.arrays(folder / "embeddings.npz", "f")
        words, positions = file["words"], file["positions"]
    except (OSError, ValueError, KeyError):
        raise InputError(
            f"{folder / 'embeddings.npz'}: expected embeddings, found another file; train it again"
        ) from None
    expected, found = (len(known), *positions.shape[1:]), words.shape
    if positions.ndim != 2 or expected != found or not np.isfinite(words).all():
        raise InputError(
            f"{folder}: expected vectors {list(expected)} of its words, found {list(found)}, or some that "
            "are not finite; train it again"
        )
    return TextEncoder(tokenizer, words, positions)


def _directions(count: int, dim: int, seed: int) -> np.ndarray:
    """Random vectors of length sqrt(dim), orthogonal within each run of `dim`, [count, dim]."""
    rng = np.random.default_rng(seed)
    squares = []
    for _ in range(-(-count // dim)):
        basis, triangle = np.linalg.qr(rng.standard_normal((dim, dim)))
        squares.append(basis * np.sign(np.diag(triangle)))
    return (np.concatenate(squares)[:count] * np.sqrt(dim)).astype(np.float32)


def _positions(length: int, dim: int) -> np.ndarray:
    """Sines and cosines of 1, 2, ... half turns over the length, [length, dim]."""
    half_turns = np.arange(1, dim // 2 + 1) / length
    angle = np.pi * np.arange(length)[:, None] * half_turns
    signal = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    return (POSITION_SCALE * np.sqrt(2) * signal).astype(np.float32)

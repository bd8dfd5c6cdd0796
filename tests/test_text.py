"""Prompts: cleaning, tokens, embeddings."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from oneforcing_jax.errors import InputError
from oneforcing_jax.families import codec
from oneforcing_jax.families import wan_text as text
from oneforcing_jax.families.wan21 import VIDEO
from oneforcing_jax.models import umt5

pytest.importorskip("ftfy")
WORDS = ["▁a", "▁cat", "▁sleeps", "▁on", "▁the", "▁mat", "▁"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A unigram tokenizer of a few words that ends each prompt with </s>, loaded from its folder."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    pieces = ["<pad>", "</s>", "<unk>", *WORDS]
    vocab = [(piece, -float(i)) for i, piece in enumerate(pieces)]
    inner = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, unk_id=2))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return text.load_tokenizer(folder)


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("  A cat\n\t sleeps ", "A cat sleeps"),
        ("cat &amp;amp; dog &lt;3", "cat & dog <3"),
        ("“quoted” ‘text’", "\"quoted\" 'text'"),
        ("色调艳丽，过曝", "色调艳丽,过曝"),
        ("a\u00a0b\u3000c\u2028d", "a b c d"),
        ("a\u200bb", "a\u200bb"),
        ("schÃ¶n", "schön"),
        ("ﬁlm Ｗｉｄｅ", "film Wide"),
        ("", ""),
    ],
)
def test_cleaning(typed: str, read: str) -> None:
    assert text.clean_prompt(typed) == read


def test_negative_prompt() -> None:
    assert VIDEO.negative.startswith("色调艳丽，过曝，静态")
    assert VIDEO.negative.endswith("背景人很多，倒着走")
    assert VIDEO.negative.count("，") == text.clean_prompt(VIDEO.negative).count(",")
    assert "，" not in text.clean_prompt(VIDEO.negative)


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 10**5, b'{"model": 3}', b"\xff\xfe"])
def test_a_damaged_tokenizer_is_one_line(tokenizer: Any, content: bytes, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match="expected the files of a tokenizer, found damaged ones"):
        text.load_tokenizer(tmp_path)


def test_tokens_end_and_are_padded(tokenizer: Any) -> None:
    ids, mask = text.tokenize(tokenizer, ["a cat  sleeps", ""], length=6)
    np.testing.assert_array_equal(ids, [[3, 4, 5, 1, 0, 0], [1, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]])
    ids, mask = text.tokenize(tokenizer, ["the mat"], 512)
    assert ids.shape == mask.shape == (1, 512)


def test_long_prompts_are_refused(tokenizer: Any) -> None:
    assert text.tokenize(tokenizer, ["cat " * 511], 512)[1].sum() == 512
    with pytest.raises(ValueError, match=r"has 521 tokens, more than the 512.*shorten it by 9"):
        text.tokenize(tokenizer, ["a cat", "cat " * 520], 512)
    with pytest.raises(TypeError, match="list of prompts"):
        text.tokenize(tokenizer, "a cat", 512)


def test_embeddings_have_no_padding(tokenizer: Any) -> None:
    config = umt5.UMT5Config(
        vocab=16, width=8, attention_width=8, mlp=16, heads=2, layers=1, dtype=jnp.float32
    )
    shapes = jax.eval_shape(lambda: umt5.init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), nn.meta.unbox(shapes)
    )
    prompts = ["a cat", "the cat sleeps on the mat", "on a mat"]
    embeddings, lengths = text.embed_prompts(config, params, tokenizer, prompts, 512, batch=2)
    np.testing.assert_array_equal(lengths, [3, 7, 4])
    assert [row.shape for row in embeddings] == [(3, 8), (7, 8), (4, 8)]

    context = codec.pad_embeddings(embeddings, length=16)
    ids, mask = text.tokenize(tokenizer, prompts, length=16)
    encode = jax.jit(functools.partial(umt5.UMT5Encoder(config).apply, method="encode"))
    expected = encode({"params": params}, ids, mask)
    np.testing.assert_allclose(context, expected, rtol=1e-5, atol=1e-5)
    assert codec.pad_embeddings(embeddings, 512).shape == (3, 512, 8)
    assert text.embed_prompts(config, params, tokenizer, [], 512)[0] == []
    with pytest.raises(ValueError, match="the longest of 7 tokens"):
        codec.pad_embeddings(embeddings, length=5)


def test_missing_things_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tokenizer folder"):
        text.load_tokenizer(tmp_path / "nowhere")
    for module, call in (
        ("ftfy", lambda: text.clean_prompt("a")),
        ("transformers", lambda: text.load_tokenizer(tmp_path)),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf'{module}.*pip install "oneforcing_jax\[wan\]"'):
            call()

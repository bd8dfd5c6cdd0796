"""Prompts of small machines: an encoder on the host, and embeddings that are kept."""

import jax
import numpy as np
import pytest
from test_wan_path import TEXT, WORDS, save_tokenizer

from oneforcing_jax import sharding
from oneforcing_jax.families import kept
from oneforcing_jax.families.wan_text import WanText, load_tokenizer
from oneforcing_jax.generation.streaming import Words
from oneforcing_jax.models import umt5

PROMPT = "".join(WORDS[:3]).replace("▁", " ").strip()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text encoder that counts how often its weights are read, and onto what."""
    folder = tmp_path_factory.mktemp("text")
    save_tokenizer(folder)
    params = sharding.unbox(umt5.init_params(TEXT, jax.random.key(0)))

    class Text(WanText):
        reads = []

    def read(mesh):
        Text.reads.append(mesh)
        return jax.device_put(params, sharding.named(mesh))

    def make():
        Text.reads.clear()
        return Text(TEXT, read, load_tokenizer(folder), 12, "abc")

    return make, Text.reads


def test_weights_are_read_when_they_are_needed(text):
    make, reads = text
    found = make()
    found.check(PROMPT)
    assert not reads
    expected = found.encode(PROMPT)
    np.testing.assert_array_equal(found.encode(PROMPT), expected)
    assert len(reads) == 1 and expected.shape == (4, TEXT.width)
    moved = Words(host=True).placed(make())
    assert [mesh.devices.size for mesh in reads] == [1]
    assert reads[0].devices.flat[0].platform == "cpu"
    np.testing.assert_allclose(moved.encode(PROMPT), expected, atol=1e-6)


def test_a_kept_prompt_needs_no_weights(text, tmp_path):
    make, reads = text
    expected = kept.encoder(make(), tmp_path)(PROMPT)
    assert len(reads) == 1
    encode = Words(host=True, kept=tmp_path).encode(make())
    again = encode(PROMPT)
    assert not reads and again.dtype == expected.dtype
    np.testing.assert_array_equal(again, expected)
    # What is damaged is made again; another encoder has files of its own.
    (file,) = (tmp_path / "abc").iterdir()
    content = file.read_bytes()
    for damage in (content[:-9], bytes([*content[:90], content[90] ^ 1, *content[91:]]), b""):
        file.write_bytes(damage)
        np.testing.assert_array_equal(encode(PROMPT), expected)
        assert len(reads) == 1 and file.read_bytes() == content
    other = make()
    other._fingerprint = "def"
    kept.encoder(other, tmp_path)(PROMPT)
    assert len(reads) == 1 and sorted(path.name for path in tmp_path.iterdir()) == ["abc", "def"]

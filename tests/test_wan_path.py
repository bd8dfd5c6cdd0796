"""From a random Wan2.1 folder and mp4 files to a trained student in PyTorch, through the real commands."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from goldens import Golden
from safetensors.numpy import save_file
from safetensors.torch import load_file
from test_convert import CONVERT, EXPORT, run, tensors, write_json, write_torch
from test_encode import MAIN as ENCODE
from waits import HANG

from oneforcing_jax.convert import umt5 as umt5_keys
from oneforcing_jax.convert import vae as vae_keys
from oneforcing_jax.convert import wan as wan_keys
from oneforcing_jax.data.store import Store
from oneforcing_jax.data.video import write_video
from oneforcing_jax.errors import MissingInput
from oneforcing_jax.families import encoders as encoding
from oneforcing_jax.families.wan21 import FAMILY
from oneforcing_jax.families.wan_codec import WanCodec
from oneforcing_jax.models.umt5 import UMT5Config
from oneforcing_jax.models.vae_layers import VAEConfig
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.toy.world import TINY, videos

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TEXT = UMT5Config(vocab=50, width=16, attention_width=24, mlp=40, heads=3, layers=2)
VAE = VAEConfig(width=2)
WAN = WanConfig(32, 48, 2, 2, in_dim=16, out_dim=16, text_dim=16, text_len=12, freq_dim=256)
WORDS = ["▁a", "▁red", "▁square", "▁moving", "▁left", "▁"]


def save_tokenizer(folder: Path) -> None:
    """A unigram tokenizer of a few words, saved by transformers."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    vocab = [(piece, -float(i)) for i, piece in enumerate(["<pad>", "</s>", "<unk>", *WORDS])]
    inner = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, unk_id=2))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def published(folder: Path) -> None:
    """Random weights in the layout of Wan2.1, scaled as a network's at its beginning."""
    state = tensors(wan_keys.transformer(WAN.num_layers), FAMILY.abstract(WAN))
    folder.mkdir()
    settings = {"dim": WAN.dim, "num_heads": WAN.num_heads, "text_len": WAN.text_len}
    write_json(folder / "config.json", settings)
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    vae = tensors(vae_keys.original(VAE), FAMILY.abstract(VAE))
    write_torch(folder / "Wan2.1_VAE.pth", vae)
    text = tensors(umt5_keys.original(TEXT), FAMILY.abstract(TEXT), "bfloat16")
    write_torch(folder / "models_t5_umt5-xxl-enc-bf16.pth", text)
    save_tokenizer(folder / "google/umt5-xxl")


def captioned_videos(folder: Path, count: int) -> None:
    """Rendered videos of 24 frames a second and another shape than the clip's."""
    folder.mkdir()
    rows = []
    for i, (caption, video) in enumerate(videos(count, 0, TINY)):
        frames = np.repeat(np.kron(video, np.ones((1, 3, 2, 1), np.uint8)), 3, 0)
        write_video(folder / f"{i}.mp4", frames, 24, crf=4)
        rows.append({"video": f"{i}.mp4", "caption": caption})
    rows.append({"video": f"{count}.mp4", "caption": "red " * 600})
    write_video(folder / f"{count}.mp4", frames, 24)
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.long
def test_from_published_files_to_a_trained_student_in_torch(
    tmp_path: Path, capsys, light_environment
) -> None:
    published(tmp_path / "wan")
    run(CONVERT, source=tmp_path / "wan", out=tmp_path / "weights")

    captioned_videos(tmp_path / "v", 8)
    latents = {"frames": 3, "rows": 4, "columns": 4}
    changes = [f"--config.latents.{name}={size}" for name, size in latents.items()]
    changes += [
        f"--config.generator.{name}={getattr(WAN, name)}" for name in ("text_len", "text_dim")
    ]
    ENCODE([
        f"--videos={tmp_path / 'v'}", f"--captions={tmp_path / 'v/captions.jsonl'}",
        f"--checkpoint={tmp_path / 'weights'}", f"--out={tmp_path / 'store'}", *changes,
    ])  # fmt: skip
    out = capsys.readouterr().out
    assert "8 of 9 samples, 1 left out" in out and "more than the 12 that the model reads" in out
    store = Store.open(tmp_path / "store")
    assert store.fields["latents"] == ((3, 16, 4, 4), "float16")
    assert store.fields["text"] == ((12, 16), "bfloat16")
    assert store.read_shared("negative_text").shape == (12, 16)
    # The store leads to the tiny decoder, which its folder is given later.
    with pytest.raises(MissingInput, match="--source taew2_1.pth --out"):
        encoding.load(tmp_path / "store", 12, decoder="tiny")
    golden = Golden("taew2_1_tiny")
    write_torch(tmp_path / "taew2_1.pth", golden.weights())
    run(CONVERT, source=tmp_path / "taew2_1.pth", out=tmp_path / "weights")
    codec = encoding.load(tmp_path / "store", 12, decoder="tiny").codec
    assert isinstance(codec, WanCodec)
    expected = 255 * np.moveaxis(golden.outputs["decode_pixels"], 2, -1)
    frames = codec.stream()(golden.inputs["latents"])
    np.testing.assert_allclose(frames, expected, atol=0.51)

    width = {k: getattr(WAN, k) for k in ("dim", "ffn_dim", "num_heads", "num_layers", "text_dim")}
    for net in ("generator", "critic", "teacher"):
        changes += [f"--config.{net}.{name}={size}" for name, size in width.items()]
        changes += [f"--config.{net}.text_len=12", f"--config.{net}.dtype=float32"]
        transformer = f"{tmp_path / 'weights/transformer'}:model"
        changes += [f"--config.stages.one_forcing.init.{net}={transformer}"]
    command = [
        sys.executable, "-m", "oneforcing_jax.main", "--config=configs/framewise.py",
        f"--workdir={tmp_path / 'run'}", *changes,
        "--config.head.layers=(0,1)", "--config.head.ffn_dim=24",
        "--config.one_forcing.gradient_blocks=2", "--config.stages.one_forcing.batch=2",
        f"--config.stages.one_forcing.data={tmp_path / 'store'}",
        "--config.stages.one_forcing.iterations=2", "--config.stages.one_forcing.samples.every=0",
    ]  # fmt: skip
    subprocess.run(command, env=light_environment, check=True, timeout=HANG)
    rows = [json.loads(line) for line in (tmp_path / "run/one_forcing/metrics.jsonl").open()]
    assert [row["iteration"] for row in rows] == [1, 2]
    assert all(math.isfinite(value) for row in rows for value in row.values())

    trained = tmp_path / "run/one_forcing"
    run(EXPORT, checkpoint=trained, out=tmp_path / "student.pt")
    student = torch.load(tmp_path / "student.pt", weights_only=True)["generator"]
    keys = set(wan_keys.transformer(WAN.num_layers, "model."))
    assert student.keys() == keys
    run(EXPORT, checkpoint=trained, out=tmp_path / "student", layout="diffusers", num_heads=2)
    settings = json.loads((tmp_path / "student/config.json").read_text())
    model = diffusers.WanTransformer3DModel.from_config(settings)
    weights = load_file(tmp_path / "student/diffusion_pytorch_model.safetensors")
    model.load_state_dict(weights, strict=True)
    moved = [
        (student[f"model.{name}"] != torch.tensor(value)).any().item()
        for name, value in tensors(
            wan_keys.transformer(WAN.num_layers), FAMILY.abstract(WAN)
        ).items()
    ]
    assert all(moved)

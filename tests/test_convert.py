"""Converting published checkpoints and back, with random weights in real file formats."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from goldens import FOLDER, dump, error
from safetensors.numpy import load_file, save_file

from oneforcing_jax.convert import keys, sizes, to_torch, torch_io
from oneforcing_jax.convert import umt5 as umt5_keys
from oneforcing_jax.convert import vae as vae_keys
from oneforcing_jax.convert import wan as wan_keys
from oneforcing_jax.families import records
from oneforcing_jax.families.wan21 import FAMILY
from oneforcing_jax.models import wan
from oneforcing_jax.models.condition import prompted
from oneforcing_jax.models.critic import HeadConfig
from oneforcing_jax.models.umt5 import UMT5Config
from oneforcing_jax.models.vae_layers import VAEConfig
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.system import checkpoint, saved

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TOOLS = Path(__file__).parent.parent / "tools"
PUBLISHED = json.loads((FOLDER / "checkpoint_keys.json").read_text())["keys"]
HEAD = HeadConfig((0, 1), 24)
TINY = WanConfig(32, 48, 2, 2, in_dim=4, out_dim=4, text_dim=16, text_len=8, freq_dim=16)
VAE = VAEConfig(
    width=4, multipliers=(1, 1), blocks=1, time_downsample=(True,), mean=(0.0, 1.0), std=(1.0, 2.0)
)
TEXT = UMT5Config(vocab=50, width=16, attention_width=24, mlp=40, heads=3, layers=2)
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
STEM = "diffusion_pytorch_model"
ORIGINAL_CONFIG = {"model_type": "t2v", "dim": 32, "num_heads": 2, "num_layers": 2, "text_len": 8}
DIFFUSERS_CONFIG = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}
VAE_CONFIG = {
    "base_dim": 4,
    "dim_mult": [1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [True],
    "latents_mean": [0.0, 1.0],
    "latents_std": [1.0, 2.0],
}

State = dict[str, np.ndarray]


def _tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CONVERT, EXPORT = _tool("convert_wan").main, _tool("export_torch").main


def tensors(key_map: keys.KeyMap, abstract: Any, dtype: str = "float32", seed: int = 0) -> State:
    """Random PyTorch tensors for a key map."""
    random = np.random.default_rng(seed)
    state = {}
    for key, leaf in key_map.items():
        shape = tuple(keys.get(abstract, leaf.path).shape)
        if leaf.layout == "conv":
            shape = (shape[-1], shape[-2], *shape[:-2])
        else:
            shape = to_torch.torch_shape(key, leaf, shape)
        state[key] = (0.1 * random.standard_normal(shape)).astype(DTYPES[dtype])
    return state


def wan_state(dtype: str = "float32", seed: int = 0, prefix: str = "") -> State:
    return tensors(wan_keys.transformer(2, prefix), FAMILY.abstract(TINY), dtype, seed)


def critic_state(dtype: str = "float32") -> State:
    return tensors(wan_keys.critic(2, 2), FAMILY.abstract(TINY, HEAD), dtype, 5)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_sharded(folder: Path, state: State, stem: str, index: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = list(state)
    half = {0: names[: len(names) // 2], 1: names[len(names) // 2 :]}
    files = {i: f"{stem}-0000{i + 1}-of-00002.safetensors" for i in half}
    for i, part in half.items():
        save_file({name: state[name] for name in part}, folder / files[i])
    if index:
        table = {name: files[i] for i, part in half.items() for name in part}
        write_json(folder / f"{stem}.safetensors.index.json", {"weight_map": table})


def write_torch(path: Path, content: Any) -> None:
    """With torch alone, in the way in which others make such files."""

    def tensor(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: tensor(entry) for name, entry in value.items()}
        if value.dtype == ml_dtypes.bfloat16:
            return torch.tensor(value.astype(np.float32)).to(torch.bfloat16)
        return torch.tensor(value)

    torch.save(tensor(content), path)


def original(folder: Path, dtype: str = "float32", sharded: str = "") -> State:
    """The layout of Wan2.1; the transformer's tensors."""
    state = wan_state(dtype)
    write_json(folder / "config.json", ORIGINAL_CONFIG)
    if sharded:
        write_sharded(folder, state, STEM, index=sharded == "index")
    else:
        save_file(state, folder / f"{STEM}.safetensors")
    return state


def run(main: Callable[..., None], **options: Any) -> None:
    arguments = []
    for name, value in options.items():
        arguments += [f"--{name}"] + ([] if value is True else [str(value)])
    main(arguments)


def bits(array: Any) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def assert_same(found: dict[str, Any], expected: State) -> None:
    """Equal names, dtypes, shapes and bits."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        value = (
            found[name] if isinstance(found[name], np.ndarray) else torch_io.to_numpy(found[name])
        )
        assert value.dtype == array.dtype and value.shape == array.shape, name
        assert bits(value) == bits(array), name


def load(folder: Path, net: str, abstract: Any, dtype: str, ema: bool = False) -> Any:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    typed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, DTYPES[dtype], sharding=device), abstract
    )
    return saved.load_net(folder, net, typed, ema)


@pytest.mark.parametrize(("size", "name"), [("1.3b", "wan2.1_t2v_1.3b"), ("14b", "wan2.1_t2v_14b")])
def test_key_maps_are_bijections_at_full_size(size: str, name: str) -> None:
    config, abstract = FAMILY.models[size], FAMILY.abstract(FAMILY.models[size])
    with torch.device("meta"):
        model = diffusers.WanTransformer3DModel(
            num_attention_heads=config.num_heads,
            ffn_dim=config.ffn_dim,
            num_layers=config.num_layers,
        )
    theirs = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    published = {key: tuple(shape) for key, shape in PUBLISHED[name].items()}
    for key_map, shapes in (
        (wan_keys.transformer(config.num_layers), published),
        (wan_keys.diffusers(config.num_layers), theirs),
    ):
        keys.check(key_map, shapes, abstract)
        places = {(leaf.path, leaf.layer) for leaf in key_map.values()}
        assert len(places) == len(key_map) == len(shapes)
        assert {path for path, _ in places} == set(keys.by_leaf(key_map))
        assert len({path for path, _ in places}) == len(jax.tree.leaves(abstract))
        for key, leaf in key_map.items():
            whole = tuple(keys.get(abstract, leaf.path).shape)
            assert to_torch.torch_shape(key, leaf, whole) == shapes[key]
        assert dataclasses.replace(sizes.wan(shapes), dtype=config.dtype) == config


def test_architectures_are_read_from_published_shapes() -> None:
    def shapes(name: str) -> dict[str, tuple[int, ...]]:
        return {key: tuple(shape) for key, shape in PUBLISHED[name].items()}

    critic = shapes("one_forcing_critic_framewise")
    head = sizes.head(critic)
    assert head == HeadConfig((0, 1), 2048)
    abstract = FAMILY.abstract(sizes.wan(critic, "model."), head)
    key_map = wan_keys.critic(30, 2)
    keys.check(key_map, critic, abstract)
    for key, leaf in key_map.items():
        whole = tuple(keys.get(abstract, leaf.path).shape)
        assert to_torch.torch_shape(key, leaf, whole) == critic[key]
    assert sizes.vae_config(shapes("wan2.1_vae"))[0] == VAEConfig()
    assert sizes.text_config(shapes("umt5_xxl_encoder"))[0] == UMT5Config()


@pytest.mark.parametrize(
    ("sharded", "dtype"),
    [("", "float32"), ("", "bfloat16"), ("index", "bfloat16"), ("bare", "float32")],
)
def test_original_layout_round_trip(tmp_path: Path, dtype: str, sharded: str) -> None:
    state = original(tmp_path / "wan", dtype, sharded)
    run(CONVERT, source=tmp_path / "wan", out=tmp_path / "out")
    run(EXPORT, checkpoint=tmp_path / "out", out=tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(back) == ["generator"]
    assert all(value.is_contiguous() for value in back["generator"].values())
    assert_same(back["generator"], {f"model.{name}": value for name, value in state.items()})
    params = load(tmp_path / "out/transformer", "model", FAMILY.abstract(TINY), dtype)
    assert_same(
        dump(wan_keys.transformer(2), params, {k: v.shape for k, v in state.items()}), state
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_diffusers_layout_round_trip(tmp_path: Path, dtype: str) -> None:
    state = tensors(wan_keys.diffusers(2), FAMILY.abstract(TINY), dtype)
    vae = tensors(vae_keys.diffusers(VAE), FAMILY.abstract(VAE), dtype)
    text = tensors(umt5_keys.transformers(TEXT), FAMILY.abstract(TEXT), dtype)
    write_sharded(tmp_path / "wan/transformer", state, STEM)
    write_json(tmp_path / "wan/transformer/config.json", DIFFUSERS_CONFIG)
    write_json(tmp_path / "wan/vae/config.json", VAE_CONFIG)
    save_file(vae, tmp_path / f"wan/vae/{STEM}.safetensors")
    tied = text | {"encoder.embed_tokens.weight": text["shared.weight"]}
    write_sharded(tmp_path / "wan/text_encoder", tied, "model")
    run(CONVERT, source=tmp_path / "wan", out=tmp_path / "out")

    run(EXPORT, checkpoint=tmp_path / "out/transformer", layout="diffusers", out=tmp_path / "back")
    assert_same(load_file(tmp_path / f"back/{STEM}.safetensors"), state)
    written = json.loads((tmp_path / "back/config.json").read_text())
    assert written["num_attention_heads"] == 2 and written["attention_head_dim"] == 16
    (said,) = json.loads((tmp_path / "out/transformer/model.json").read_text())["nets"].values()
    assert said["more"] == {"family": "wan21", "causal": False} and "causal" not in written
    for name, config, key_map, expected in (
        ("vae", VAE, vae_keys.diffusers(VAE), vae),
        ("text", TEXT, umt5_keys.transformers(TEXT), text),
    ):
        params = load(tmp_path / "out" / name, "model", FAMILY.abstract(config), dtype)
        shapes = {key: value.shape for key, value in expected.items()}
        assert_same(dump(key_map, params, shapes), expected)
        record = json.loads((tmp_path / f"out/{name}/model.json").read_text())["nets"][
            "params_model"
        ]
        assert records.config_of(record, config.dtype) == config
        assert record["layout"] == "diffusers"


@pytest.mark.parametrize("dtype", DTYPES)
def test_original_vae_and_text_round_trip(tmp_path: Path, dtype: str, monkeypatch: Any) -> None:
    # A .pth has no config.json, so this VAE has the stages of Wan2.1; only the width differs.
    vae_config = VAEConfig(width=2)
    vae = tensors(vae_keys.original(vae_config), FAMILY.abstract(vae_config), dtype)
    text = tensors(umt5_keys.original(TEXT), FAMILY.abstract(TEXT), dtype)
    folder = tmp_path / "wan"
    folder.mkdir()
    write_torch(folder / "Wan2.1_VAE.pth", vae)
    write_torch(folder / "models_t5_umt5-xxl-enc-bf16.pth", text)
    run(CONVERT, source=folder, out=tmp_path / "out", only="vae")
    # So small a limit makes it open the file anew for every tensor.
    monkeypatch.setattr(torch_io, "_REOPEN_BYTES", 0)
    run(CONVERT, source=folder, out=tmp_path / "out", only="vae,text")
    for name, config, key_map, state in (
        ("vae", vae_config, vae_keys.original(vae_config), vae),
        ("text", TEXT, umt5_keys.original(TEXT), text),
    ):
        params = load(tmp_path / "out" / name, "model", FAMILY.abstract(config), dtype)
        assert_same(dump(key_map, params, {k: v.shape for k, v in state.items()}), state)


@pytest.mark.parametrize(
    ("wrapper", "dtype"), [("", "float32"), ("model", "bfloat16"), ("blocks", "float32")]
)
def test_pt_round_trip(tmp_path: Path, dtype: str, wrapper: str) -> None:
    def wrapped(state: State) -> State:
        inner = "_fsdp_wrapped_module."
        places = {
            "": ("", ""),
            "model": ("model.", f"model.{inner}"),
            "blocks": ("blocks.", "blocks."),
        }
        before, after = places[wrapper]
        renamed = {k.replace(before, after, 1) if before else k: v for k, v in state.items()}
        if wrapper == "blocks":
            for i in (0, 1):
                renamed = {
                    k.replace(f"blocks.{i}.", f"blocks.{i}.{inner}"): v for k, v in renamed.items()
                }
            renamed = {f"{inner}{k}": v for k, v in renamed.items()}
        return renamed

    generator, ema = wan_state(dtype, 1, "model."), wan_state(dtype, 2, "model.")
    critic = critic_state(dtype)
    content = {
        "generator": wrapped(generator),
        "generator_ema": wrapped(ema),
        "critic": wrapped(critic),
    }
    write_torch(tmp_path / "one.pt", content)
    out = tmp_path / "out"
    run(CONVERT, source=tmp_path / "one.pt", out=out, num_heads=2)
    record = json.loads((out / "model.json").read_text())["nets"]
    assert {net["more"]["causal"] for item, net in record.items() if "generator" in item} <= {True}
    assert record["params_critic"]["head"] == {"taps": 2, "ffn_dim": 24}
    load(out, "critic", FAMILY.abstract(TINY, HEAD), dtype)
    for options, name, state in (
        ({}, "generator", generator),
        ({"ema": True}, "generator_ema", ema),
        ({"net": "critic"}, "critic", critic),
    ):
        back = tmp_path / f"{name}.pt"
        run(EXPORT, checkpoint=out, out=back, **options)
        found = torch.load(back, weights_only=True)
        assert list(found) == [name]
        assert_same(found[name], state)


def test_critic_without_head_is_a_plain_transformer(tmp_path: Path) -> None:
    state = wan_state(prefix="model.")
    write_torch(tmp_path / "dmd.pt", {"critic": state})
    run(CONVERT, source=tmp_path / "dmd.pt", out=tmp_path / "out", num_heads=2)
    load(tmp_path / "out", "fake_score", FAMILY.abstract(TINY), "float32")
    run(EXPORT, checkpoint=tmp_path / "out", net="fake_score", out=tmp_path / "back.pt")
    assert_same(torch.load(tmp_path / "back.pt", weights_only=True)["critic"], state)


def test_dtypes_change_by_rounding_to_the_nearest(tmp_path: Path) -> None:
    state = original(tmp_path / "wan")
    run(CONVERT, source=tmp_path / "wan", out=tmp_path / "out", dtype="bfloat16")
    run(EXPORT, checkpoint=tmp_path / "out", out=tmp_path / "back.pt", dtype="float32")
    back = torch.load(tmp_path / "back.pt", weights_only=True)["generator"]
    expected = {
        f"model.{k}": torch.tensor(v).to(torch.bfloat16).float().numpy() for k, v in state.items()
    }
    assert_same(back, expected)


def test_export_equals_diffusers(tmp_path: Path) -> None:
    original(tmp_path / "wan")
    run(CONVERT, source=tmp_path / "wan", out=tmp_path / "out")
    run(EXPORT, checkpoint=tmp_path / "out", layout="diffusers", out=tmp_path / "folder")
    run(EXPORT, checkpoint=tmp_path / "out", layout="diffusers", out=tmp_path / "one.safetensors")
    settings = diffusers.WanTransformer3DModel.load_config(tmp_path / "folder")
    theirs = diffusers.WanTransformer3DModel.from_config(settings).eval()
    weights = load_file(tmp_path / f"folder/{STEM}.safetensors")
    assert_same(load_file(tmp_path / "one.safetensors"), weights)
    theirs.load_state_dict({name: torch.tensor(v) for name, v in weights.items()}, strict=True)

    random = np.random.default_rng(7)
    latents = random.standard_normal((1, 3, 4, 4, 6)).astype(np.float32)
    text = random.standard_normal((1, 8, 16)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(
            torch.tensor(latents).movedim(1, 2), torch.tensor([500.0]), torch.tensor(text)
        ).sample.movedim(2, 1)
    params = load(tmp_path / "out/transformer", "model", FAMILY.abstract(TINY), "float32")
    with jax.default_matmul_precision("highest"):
        output: Any = wan.model(TINY).apply(params, latents, jnp.array([0.5]), prompted(text))
    assert error(output.flow, expected.numpy()) < 2e-5


def test_export_of_a_training_checkpoint_takes_the_latest(tmp_path: Path) -> None:
    key_map, abstract = wan_keys.transformer(2, "model."), FAMILY.abstract(TINY)
    states = {step: wan_state(seed=step, prefix="model.") for step in (9, 10)}
    with checkpoint.manager(tmp_path / "checkpoints") as manager:
        for step, state in states.items():
            params = jax.tree.map(jnp.asarray, keys.load(key_map, state, abstract))
            checkpoint.save(
                manager, step, {"params": {"generator": params}, "ema": {"generator": params}}
            )
        manager.wait_until_finished()
    run(EXPORT, checkpoint=tmp_path / "checkpoints", out=tmp_path / "back.pt", ema=True)
    assert_same(torch.load(tmp_path / "back.pt", weights_only=True)["generator_ema"], states[10])


def test_finished_parts_are_skipped(tmp_path: Path, capsys: Any) -> None:
    original(tmp_path / "wan")
    command: dict[str, Any] = {"source": tmp_path / "wan", "out": tmp_path / "out"}
    # What a kill has left does not disturb.
    (tmp_path / "out/.transformer.partial/0").mkdir(parents=True)
    run(CONVERT, **command)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["transformer"]
    capsys.readouterr()
    run(CONVERT, **command)
    assert "transformer: finished before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times
    with pytest.raises(SystemExit, match="found one of .* as as stored; choose another folder"):
        run(CONVERT, **command, dtype="bfloat16")
    write_torch(tmp_path / "one.pt", {"generator": wan_state(prefix="model.")})
    command = {"source": tmp_path / "one.pt", "out": tmp_path / "generator", "num_heads": 2}
    run(CONVERT, **command)
    capsys.readouterr()
    run(CONVERT, **command)
    assert "one.pt: finished before" in capsys.readouterr().out


class Code:
    """Something that a checkpoint must not hold."""


def _without(folder: Path, **change: Any) -> Path:
    state = original(folder)
    for name in ("blocks.0.ffn.0.bias", "blocks.1.ffn.0.bias"):
        del state[name]
    state["blocks.0.cross_attn.k_img.weight"] = np.zeros((32, 32), np.float32)
    state["time_projection.1.bias"] = np.zeros(3, np.float32)
    save_file(state, folder / f"{STEM}.safetensors")
    return folder


def _cut(path: Path, size: int | None = None) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: size or len(content) // 2])


def _bad_safetensors(folder: Path, **change: Any) -> Path:
    original(folder)
    _cut(folder / f"{STEM}.safetensors")
    return folder


def _bad_header(folder: Path, **change: Any) -> Path:
    original(folder)
    path = folder / f"{STEM}.safetensors"
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])
    return folder


def _bad_shard(folder: Path) -> Path:
    original(folder, sharded="index")
    (folder / f"{STEM}-00002-of-00002.safetensors").unlink()
    return folder


def _bad_config(folder: Path) -> Path:
    original(folder)
    write_json(folder / "config.json", ORIGINAL_CONFIG | {"num_layers": 30})
    return folder


def _no_heads(folder: Path) -> Path:
    original(folder)
    (folder / "config.json").unlink()
    return folder


def _other_model(folder: Path) -> Path:
    folder.mkdir()
    save_file({"unet.weight": np.zeros(3, np.float32)}, folder / f"{STEM}.safetensors")
    return folder


def _empty(folder: Path) -> Path:
    folder.mkdir()
    (folder / "notes.txt").write_text("nothing")
    return folder


def _beside(folder: Path) -> Path:
    _empty(folder)
    write_torch(folder / "model.pt", {"generator": wan_state(prefix="model.")})
    return folder


def _pointer(folder: Path) -> Path:
    folder.mkdir()
    (folder / f"{STEM}.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    return folder


def _pt(content: Any, cut: bool = False) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        folder.mkdir()
        torch.save(content, folder / "model.pt")
        if cut:
            _cut(folder / "model.pt")
        return folder / "model.pt"

    return make


def _old_format(folder: Path) -> Path:
    folder.mkdir()
    state = {"generator": {"model.patch_embedding.weight": torch.zeros(3)}}
    torch.save(state, folder / "model.pt", _use_new_zipfile_serialization=False)
    return folder / "model.pt"


def _plain_pickle(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.pt").write_bytes(pickle.dumps({"generator": 1}))
    return folder / "model.pt"


def _half_critic(folder: Path) -> Path:
    folder.mkdir()
    critic = critic_state()
    del critic["_gan_ca_blocks.1.norm3.bias"]
    content = {"generator": wan_state(prefix="model."), "critic": critic}
    write_torch(folder / "model.pt", content)
    return folder / "model.pt"


BAD: dict[str, tuple[Callable[[Path], Path], dict[str, Any], tuple[str, ...]]] = {
    "unfit": (
        _without,
        {},
        (
            f"{STEM}.safetensors does not fit the model",
            "missing blocks.*.ffn.*.bias (2)",
            "unexpected blocks.0.cross_attn.k_img.weight",
            "time_projection.1.bias has shape (3,), which gives (3,), not (192,)",
        ),
    ),
    "truncated": (_bad_safetensors, {}, ("bytes that do not read as one", "download or copy it")),
    "header": (_bad_header, {}, (f"{STEM}.safetensors: expected a safetensors file",)),
    "shard": (
        _bad_shard,
        {},
        ("index.json: expected 2 files", "-00002-of-00002.safetensors missing"),
    ),
    "config": (_bad_config, {}, ("config.json says num_layers 30, the tensors say 2",)),
    "heads": (_no_heads, {}, ("found none and width 32; pass --num_heads",)),
    "architecture": (
        _other_model,
        {},
        ("expected the tensors of a Wan transformer", "unet.weight"),
    ),
    "folder": (_empty, {}, ("found no model among: notes.txt", "give the folder that holds them")),
    "part": (_other_model, {"only": "vae,text"}, ("found no vae and no text among",)),
    "unknown part": (
        _other_model,
        {"only": "unet"},
        ("among transformer, vae, text, found 'unet'",),
    ),
    "pt in folder": (_beside, {}, ("found no model among", "give the file", "model.pt")),
    "pointer": (_pointer, {}, ("found the Git LFS pointer to one",)),
    "pt truncated": (
        _pt({"generator": {"model.a": torch.zeros(999)}}, cut=True),
        {},
        ("expected a PyTorch file", "truncated or damaged"),
    ),
    "pt code": (_pt({"generator": Code()}), {}, ("found pickled code (", "Code)", "is not run")),
    "pt other": (
        _pt({"state": {"a": torch.zeros(3)}}),
        {},
        ("expected networks among", "found state"),
    ),
    "pt numbers": (
        _pt({"generator": {"a": 1}}),
        {},
        ("generator: a: expected a dense floating-point",),
    ),
    "pt list": (_pt({"generator": [1]}), {}, ("expected a state dict 'generator', found list",)),
    "pt architecture": (
        _pt({"generator": {"model.a": torch.zeros(3)}}),
        {},
        ("model.pt: generator: expected the tensors of a Wan transformer",),
    ),
    "pt old": (_old_format, {}, ("expected the zip format of torch.save",)),
    "pt pickle": (_plain_pickle, {}, ("model.pt: expected",)),
    "pt critic": (
        _half_critic,
        {"num_heads": 2},
        ("model.pt: critic does not fit the model: missing _gan_ca_blocks.1.norm3.bias",),
    ),
    "absent": (lambda folder: folder / "none", {}, ("found nothing of that name; check the path",)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    make, options, expected = BAD[case]
    source = make(tmp_path / "in")
    with pytest.raises(SystemExit) as failure:
        run(CONVERT, source=source, out=tmp_path / "made/for/out", **options)
    line = str(failure.value)
    assert line.startswith("error: ") and "\n" not in line
    for text in expected:
        assert text in line
    assert sorted(path.name for path in tmp_path.iterdir()) in ([], ["in"])


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    original(tmp_path / "wan")

    def full(folder: Path, tree: Any) -> None:
        folder.mkdir(parents=True)
        (folder / "half").write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr("oneforcing_jax.convert.to_orbax.save_item", full)
    with pytest.raises(SystemExit, match="error: No space left on device"):
        run(CONVERT, source=tmp_path / "wan", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_download_is_asked_for_what_is_needed(tmp_path: Path, monkeypatch: Any) -> None:
    asked = {}

    def snapshot(repository: str, revision: Any, allow_patterns: list[str]) -> str:
        asked[repository] = allow_patterns
        return str(tmp_path / "wan")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    original(tmp_path / "wan")
    run(CONVERT, source="owner/name", out=tmp_path / "out", only="transformer")
    assert f"{STEM}*.safetensors*" in asked["owner/name"]
    assert not any("vae" in pattern.lower() for pattern in asked["owner/name"])
    with pytest.raises(SystemExit, match="the repository has no file a.pt"):
        run(CONVERT, source="owner/other:a.pt", out=tmp_path / "other")
    assert asked["owner/other"] == ["a.pt"]

    def offline(repository: str, revision: Any, allow_patterns: list[str]) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(SystemExit, match="could not be downloaded .no route to host."):
        run(CONVERT, source="owner/name", out=tmp_path / "third")


def test_a_download_is_of_one_commit_and_says_which(tmp_path: Path, monkeypatch: Any) -> None:
    """The small files, the weights, and what a later command adds, though the branch has moved on."""
    commits, asked = [f"{n:040x}" for n in (10, 11)], []
    for commit in commits:
        original(tmp_path / commit)

    def snapshot(repository: str, revision: Any, allow_patterns: list[str]) -> str:
        asked.append(revision)
        return str(tmp_path / (revision if revision in commits else commits[len(asked) > 1]))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    source = "owner/name@main"
    run(CONVERT, source=source, out=tmp_path / "out", only="transformer")
    record = json.loads((tmp_path / "out/transformer/model.json").read_text())
    assert record["source"] == source and record["more"] == {"revision": commits[0]}
    with pytest.raises(SystemExit, match="found no vae among"):
        run(CONVERT, source=source, out=tmp_path / "out", only="vae")
    assert asked == ["main", commits[0], commits[0], commits[0]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"checkpoint": "none", "out": "a.pt"}, "expected Orbax checkpoints"),
        ({"net": "critic", "out": "a.pt"}, "expected an item 'params_critic'"),
        ({"ema": True, "out": "a.pt"}, "expected an item 'ema_generator'"),
        ({"out": "a.safetensors"}, "layout 'original' is written as .pt"),
        ({"out": "a.pt", "layout": "diffusers"}, "layout 'diffusers' is written as .safetensors"),
        ({"out": "taken.pt"}, "exists already"),
        ({"checkpoint": "out/vae", "out": "a.pt"}, "expected a transformer or critic"),
    ],
)
def test_export_errors_are_one_line(exported: Path, options: dict, expected: str) -> None:
    before = sorted(exported.rglob("*"))
    arguments = {"checkpoint": "out"} | options
    paths = {name: exported / arguments.pop(name) for name in ("checkpoint", "out")}
    with pytest.raises(SystemExit) as failure:
        run(EXPORT, **paths, **arguments)
    line = str(failure.value)
    assert line.startswith("error: ") and expected in line and "\n" not in line
    assert sorted(exported.rglob("*")) == before


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    original(folder / "wan")
    write_json(folder / "wan/vae/config.json", VAE_CONFIG)
    vae = tensors(vae_keys.diffusers(VAE), FAMILY.abstract(VAE))
    save_file(vae, folder / f"wan/vae/{STEM}.safetensors")
    run(CONVERT, source=folder / "wan", out=folder / "out")
    (folder / "taken.pt").write_text("taken")
    shutil.rmtree(folder / "wan")
    return folder


# Records.


def test_a_records_version_and_room_change_no_fingerprint(tmp_path: Path) -> None:
    """Stores know encoders by their records as releases wrote them that had no versions."""
    net: Any = {"kind": "VAEConfig", "config": {"channels": 4}, "dtype": "float32"}
    old: Any = {"source": "wan", "dtype": "as stored", "nets": {"params_model": net}}
    file = tmp_path / "model.json"
    file.write_text(json.dumps(old, indent=1))
    before = records.fingerprint(tmp_path)
    assert before == hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    more = {"params_model": net | {"more": {"family": "Wan2.1"}}}
    file.write_text(json.dumps({"version": 1} | old | {"nets": more, "more": {"new": 1}}, indent=1))
    assert records.fingerprint(tmp_path) == before
    other = {"version": 1} | old | {"source": "another"}
    file.write_text(json.dumps(other, indent=1))
    assert records.fingerprint(tmp_path) != before
    file.write_text(json.dumps({"version": 2} | old))
    with pytest.raises(ValueError, match="expected a record of version 1, found 2; read it with"):
        records.fingerprint(tmp_path)
    with pytest.raises(ValueError, match="expected a network of WanConfig, .* found another"):
        records.config_of({"kind": "Wan3", "config": {}})
    known = records.describe(TINY)
    with pytest.raises(ValueError, match="sizes that are not known here .*'experts'"):
        records.config_of(known | {"config": known["config"] | {"experts": 2}})


def test_a_student_that_goes_out_as_a_folder_comes_back_as_one() -> None:
    assert not sizes.is_causal(DIFFUSERS_CONFIG) and not sizes.is_causal({})
    assert sizes.is_causal(DIFFUSERS_CONFIG | {"causal": True})
    assert sizes.is_causal({"_class_name": "CausalWanModel"})

"""The VAE against recorded vectors, diffusers, and itself cut into pieces."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import FOLDER, Golden, allowed, dump, error
from hypothesis import given, settings
from hypothesis import strategies as st

from oneforcing_jax import sharding
from oneforcing_jax.convert import keys, sizes, theirs
from oneforcing_jax.convert import vae as keys_vae
from oneforcing_jax.families.wan_codec import WanCodec
from oneforcing_jax.models import vae, vae_layers, vae_shortcuts, vae_stream

SMALL = vae.VAEConfig(
    width=4,
    multipliers=(1, 2, 2),
    blocks=1,
    time_downsample=(True, True),
    mean=(0.1, -0.2, 0.3),
    std=(1.5, 1.0, 0.5),
    dtype=jnp.float32,
)
# What Wan2.2's VAE has, and Wan2.1's has not.
NEWER = {"patch": 2, "shortcuts": True}
# Most of the time goes into compiling; at these sizes the code need not be good.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
PUBLISHED = json.loads((FOLDER / "checkpoint_keys.json").read_text())["keys"]["wan2.1_vae"]


def abstract(config: vae.VAEConfig) -> Any:
    return nn.meta.unbox(jax.eval_shape(lambda: vae.init_params(config, jax.random.key(0))))


@functools.lru_cache(maxsize=64)
def program(config: vae.VAEConfig, method: str) -> Any:
    model = vae.WanVAE(config)
    return jit(lambda params, x: model.apply({"params": params}, x, method=method))


@functools.lru_cache(maxsize=1)
def small_params() -> Any:
    return nn.meta.unbox(vae.init_params(SMALL, jax.random.key(1)))


@pytest.fixture(name="small")
def _small() -> Any:
    return small_params()


def swap(video: Any) -> np.ndarray:
    """[b, c, f, y, x] <-> [b, f, c, y, x]."""
    return np.swapaxes(np.asarray(video), 1, 2)


@pytest.fixture(scope="module", params=["vae_tiny", "vae22_tiny"])
def golden(request: Any) -> Golden:
    return Golden(request.param)


# Each case compiles for seconds. In the quick ones, a recorded stream stands for Wan2.2's decode.
CASES = pytest.mark.parametrize(
    ("golden", "prefix"),
    [
        ("vae_tiny", ""),
        ("vae_tiny", "image_"),
        pytest.param("vae22_tiny", "", marks=pytest.mark.long),
        pytest.param("vae22_tiny", "image_", marks=pytest.mark.long),
    ],
    indirect=["golden"],
)


@pytest.fixture(scope="module")
def config(golden: Golden) -> vae.VAEConfig:
    return vae.VAEConfig(
        width=golden.config["dim"],
        multipliers=tuple(golden.config["dim_mult"]),
        blocks=golden.config["num_res_blocks"],
        time_downsample=tuple(golden.config["temperal_downsample"]),
        mean=tuple(golden.inputs["mean"].tolist()),
        std=tuple(golden.inputs["std"].tolist()),
        dtype=jnp.float32,
        **(
            {"decoder_width": golden.config["dec_dim"]} | NEWER
            if "dec_dim" in golden.config
            else {}
        ),
    )


@pytest.fixture(scope="module")
def params(golden: Golden, config: vae.VAEConfig) -> Any:
    loaded = keys.load(keys_vae.original(config), golden.weights(), abstract(config))
    return jax.tree.map(jnp.asarray, loaded)


@pytest.mark.gpu
@CASES
def test_encode_equals_recorded(golden: Golden, config: Any, params: Any, prefix: str) -> None:
    pixels = swap(golden.inputs["image" if prefix else "video"])
    latents = program(config, "encode")(params, pixels)
    assert error(swap(latents), golden.outputs[f"{prefix}encode_latents"]) < allowed(1e-5)
    if not prefix:
        mu, logvar = program(config, "moments")(params, pixels)
        assert error(swap(mu), golden.outputs["encode_mu"]) < allowed(1e-5)
        assert error(swap(logvar), golden.outputs["encode_logvar"]) < allowed(1e-5)


@pytest.mark.gpu
def test_shortcuts_equal_recorded() -> None:
    """Of widths, too, that the published network has not."""
    golden = Golden("vae22_tiny")

    def check(name: str, made: Any) -> None:
        found = np.moveaxis(np.stack(made, axis=1), -1, 1)
        assert error(found, golden.outputs[f"{name}_y"]) < allowed(1e-6)

    for name in golden.inputs:
        kind, _, what = name.partition("_")
        if not kind[-1].isdigit() or what != "x":
            continue
        x = jnp.moveaxis(golden.inputs[name], 1, -1)
        frames = tuple(x[:, i] for i in range(x.shape[1]))
        if kind.startswith("average"):
            sizes = golden.inputs[f"{kind}_out_time_space"].tolist()
            check(kind, vae_shortcuts.averaged(frames, *sizes))
        else:
            *sizes, first = golden.inputs[f"{kind}_out_time_space_first"].tolist()
            check(kind, vae_shortcuts.repeated(frames, *sizes, first=bool(first)))
    image = jnp.moveaxis(golden.inputs["image"], 1, -1)
    patches = vae_shortcuts.patched(image, 2)
    np.testing.assert_array_equal(jnp.moveaxis(patches, -1, 1), golden.outputs["patches"])
    np.testing.assert_array_equal(vae_shortcuts.unpatched(patches, 2), image)


@pytest.mark.gpu
@CASES
def test_decode_equals_recorded(golden: Golden, config: Any, params: Any, prefix: str) -> None:
    pixels = program(config, "decode")(params, swap(golden.inputs[f"{prefix}latents"]))
    assert error(swap(pixels), golden.outputs[f"{prefix}decode_pixels"]) < allowed(1e-5)


@pytest.mark.gpu
def test_stream_equals_recorded(golden: Golden, config: Any, params: Any) -> None:
    latents = swap(golden.inputs["latents"])
    state = vae_stream.init_stream(config, 1, *latents.shape[3:])
    start = 0
    for i, count in enumerate(golden.inputs["stream_chunks"].tolist()):
        chunk = latents[:, start : start + count]
        pixels, state = jit(vae_stream.decode_step)(params, state, chunk)
        assert error(swap(pixels), golden.outputs[f"stream_pixels_{i}"]) < allowed(1e-5)
        start += count


@pytest.mark.gpu
def test_norm_equals_recorded() -> None:
    golden = Golden("vae_tiny")
    x = jnp.moveaxis(golden.inputs["rms_x"], 1, -1)
    norm = vae_layers.Norm(jnp.float32)
    scale = golden.weights()["encoder.head.0.gamma"].reshape(-1)
    y = jnp.moveaxis(norm.apply({"params": {"scale": scale}}, x), -1, 1)
    assert error(y, golden.outputs["rms_y"]) < allowed(1e-6)
    slope = jax.grad(lambda x: norm.apply({"params": {"scale": scale}}, x).sum())(jnp.zeros_like(x))
    assert np.isfinite(slope).all()


@pytest.mark.parametrize(
    "golden",
    ["vae_tiny", pytest.param("vae22_tiny", marks=pytest.mark.long)],
    indirect=True,
)
def test_diffusers_agrees(config: vae.VAEConfig) -> None:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    oracle = diffusers.AutoencoderKLWan(
        base_dim=config.width,
        z_dim=config.channels,
        dim_mult=list(config.multipliers),
        num_res_blocks=config.blocks,
        temperal_downsample=list(config.time_downsample),
        **theirs.newer_vae(config),
    ).eval()
    with torch.no_grad():
        for name, weight in oracle.named_parameters():
            if name.endswith("gamma"):
                weight.uniform_(0.5, 1.5)
    tensors = {name: tensor.numpy() for name, tensor in oracle.state_dict().items()}
    params = keys.load(keys_vae.diffusers(config), tensors, abstract(config))

    video = np.random.default_rng(0).uniform(-1, 1, (1, 3, 9, 32, 48)).astype(np.float32)
    with torch.no_grad():
        posterior = oracle.encode(torch.from_numpy(video)).latent_dist
    mu, logvar = program(config, "moments")(params, swap(video))
    assert error(swap(mu), posterior.mean) < 1e-4
    assert error(np.clip(swap(logvar), -30, 20), posterior.logvar) < 1e-4

    size = (1, 3, config.channels, 32 // config.space_stride, 48 // config.space_stride)
    latents = np.random.default_rng(1).normal(size=size).astype(np.float32)
    std = np.asarray(config.std, np.float32)[:, None, None]
    raw = latents * std + np.asarray(config.mean, np.float32)[:, None, None]
    with torch.no_grad():
        expected = oracle.decode(torch.from_numpy(swap(raw).copy())).sample
    pixels = vae.clamp(program(config, "decode")(params, latents))
    assert error(swap(pixels), expected) < 1e-4


def test_wan22_has_its_published_size() -> None:
    """Every tensor has the shape that diffusers says, and there are as many numbers as published."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    config, shapes = vae_layers.WAN22, abstract(vae_layers.WAN22)
    with torch.device("meta"):
        model = diffusers.AutoencoderKLWan.from_config(theirs._vae(config))
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    keys.check(keys_vae.diffusers(config), found, shapes)
    leaves = jax.tree.leaves(shapes)
    assert (len(leaves), sum(leaf.size for leaf in leaves)) == (196, 704_688_668)
    for key_map in (keys_vae.original(config), keys_vae.diffusers(config)):
        assert len({leaf.path for leaf in key_map.values()}) == len(key_map) == 196
    # The original's numbers, a stage with a doubling and the last one.
    names = set(keys_vae.original(config))
    assert {
        "encoder.downsamples.2.downsamples.2.time_conv.weight",
        "encoder.downsamples.1.downsamples.0.shortcut.bias",
        "decoder.upsamples.2.upsamples.3.resample.1.weight",
        "decoder.upsamples.3.upsamples.0.shortcut.weight",
    } <= names
    read, _ = sizes.vae_config(found)
    assert read == config


def test_key_maps_are_bijections_at_full_size() -> None:
    config = vae.VAEConfig()
    shapes = abstract(config)
    paths = {tuple(p.key for p in path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)}
    for key_map in (keys_vae.original(config), keys_vae.diffusers(config)):
        assert sorted(leaf.path for leaf in key_map.values()) == sorted(paths)
    for key, leaf in keys_vae.original(config).items():
        found = keys.leaf_shape(tuple(PUBLISHED[key]), leaf.layout)
        expected = keys.get(shapes, leaf.path).shape
        assert [n for n in found if n != 1] == [n for n in expected if n != 1], key
    assert set(keys_vae.original(config)) == set(PUBLISHED)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 126_892_531


def test_diffusers_keys_at_full_size() -> None:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        oracle = diffusers.AutoencoderKLWan()
    config = vae.VAEConfig()
    theirs, ours = keys_vae.diffusers(config), keys_vae.original(config)
    by_path = {leaf: PUBLISHED[key] for key, leaf in ours.items()}
    expected = {name: list(tensor.shape) for name, tensor in oracle.state_dict().items()}
    assert {key: by_path[leaf] for key, leaf in theirs.items()} == expected


def test_weights_survive_a_round_trip(golden: Golden, config: Any, params: Any) -> None:
    weights = golden.weights()
    shapes = {key: tensor.shape for key, tensor in weights.items()}
    back = dump(keys_vae.original(config), params, shapes)
    for key, tensor in weights.items():
        np.testing.assert_array_equal(back[key], tensor)


@functools.lru_cache(maxsize=1)
def _stream() -> tuple[Any, np.ndarray, np.ndarray]:
    """Parameters, latents, and their pixels decoded as a whole."""
    params = small_params()
    latents = np.random.default_rng(2).normal(size=(2, 6, 3, 2, 3)).astype(np.float32)
    return params, latents, np.asarray(program(SMALL, "decode")(params, latents))


_step = jit(vae_stream.decode_step)


@settings(max_examples=12)
@given(st.lists(st.sampled_from([1, 2]), min_size=1, max_size=6).filter(lambda cut: sum(cut) <= 6))
def test_stream_equals_whole_however_it_is_cut(cut: list[int]) -> None:
    params, latents, whole = _stream()
    state = vae_stream.init_stream(SMALL, 2, 2, 3)
    parts, start = [], 0
    for count in cut:
        part, state = _step(params, state, latents[:, start : start + count])
        assert part.shape[1] == (4 * count if start else 1 + 4 * (count - 1))
        parts.append(part)
        start += count
    pixels = np.concatenate(parts, axis=1)
    assert error(pixels, whole[:, : pixels.shape[1]]) < 1e-5


def test_future_frames_do_not_change_the_past() -> None:
    params, latents, whole = _stream()
    changed = latents.copy()
    changed[:, 3:] += 1.0
    pixels = np.asarray(program(SMALL, "decode")(params, changed))
    np.testing.assert_array_equal(pixels[:, :9], whole[:, :9])
    assert error(pixels[:, 9:], whole[:, 9:]) > 1e-2


def test_stream_is_two_programs(small: Any) -> None:
    states = [vae_stream.init_stream(SMALL, 1, 2, 3)]
    for _ in range(3):
        latents = jax.ShapeDtypeStruct((1, 1, 3, 2, 3), jnp.float32)
        states.append(jax.eval_shape(vae_stream.decode_step, small, states[-1], latents)[1])
    kinds = [jax.tree.structure(state) for state in states]
    assert kinds[0] != kinds[1] == kinds[2] == kinds[3]
    sizes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)] for state in states]
    assert not sizes[0] and sizes[1] == sizes[2] == sizes[3]


@pytest.mark.parametrize(("c_in", "c_out"), [(4, 7), (2, 8), (16, 3)])
@pytest.mark.parametrize("cut", [(1, 2, 2), (1, 4), (1, 1, 1, 2), (5,), (4, 1)])
def test_causal_convolution_is_a_3d_convolution(
    c_in: int, c_out: int, cut: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2, 5, 5, 6, c_in)).astype(np.float32)
    weights = {"kernel": rng.normal(size=(3, 3, 3, c_in, c_out)), "bias": rng.normal(size=c_out)}
    expected = weights["bias"] + jax.lax.conv_general_dilated(
        x,
        jnp.float32(weights["kernel"]),
        (1, 1, 1),
        ((2, 0), (1, 1), (1, 1)),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    layer, past, made, start = vae_layers.CausalConv(SMALL, c_out), None, [], 0
    for count in cut:
        frames = tuple(jnp.asarray(x[:, i]) for i in range(start, start + count))
        found, past = layer.apply({"params": weights}, frames, past)
        made += found
        start += count
    assert error(np.stack(made, axis=1), expected) < 1e-5


def test_enlarged_convolution_is_one_of_the_enlarged_frame() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(2, 5, 6, 4)).astype(np.float32)
    weights = {"kernel": rng.normal(size=(3, 3, 4, 7)), "bias": rng.normal(size=7)}
    layer = vae_layers.SpaceConv(SMALL, 7, halves=False)
    expected = weights["bias"] + jax.lax.conv_general_dilated(
        np.repeat(np.repeat(x, 2, axis=1), 2, axis=2),
        jnp.float32(weights["kernel"]),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    assert error(layer.apply({"params": weights}, x), expected) < 1e-5


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_working_memory_does_not_grow_with_length(method: str) -> None:
    def working(latent_frames: int) -> int:
        frames = 1 + 4 * (latent_frames - 1)
        shape = (1, latent_frames, 3, 4, 4) if method == "decode" else (1, frames, 3, 16, 16)
        video = jax.ShapeDtypeStruct(shape, jnp.float32)
        compiled = program(SMALL, method).lower(abstract(SMALL), video).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # The number of each step; and an encode keeps mean and log-variance until its end.
    allowed = 1024 + (40 * 6 * 4 * 4 * 4 if method == "encode" else 0)
    assert working(40) <= working(4) + allowed


def test_half_precision_stays_close() -> None:
    params, latents, whole = _stream()
    state = vae_stream.init_stream(SMALL, 2, 2, 3, dtype=jnp.bfloat16)
    pixels, state = _step(params, state, latents[:, :2])
    assert pixels.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state.cache)} == {jnp.dtype(jnp.bfloat16)}
    assert vae.clamp(pixels).dtype == jnp.float32
    assert error(pixels.astype(jnp.float32), whole[:, :5]) < 0.1


@pytest.mark.parametrize(("axes", "batch"), [({"sequence": 4, "data": 2}, 2), ({"sequence": 8}, 1)])
def test_columns_over_devices(small: Any, axes: dict[str, int], batch: int) -> None:
    mesh = sharding.make_mesh(axes)
    one = sharding.make_mesh({}, jax.devices()[:1])
    codecs = [
        WanCodec(SMALL, jax.device_put(small, sharding.named(place))) for place in (one, mesh)
    ]
    video = np.random.default_rng(7).integers(0, 256, (batch, 9, 8, 32, 3), np.uint8)
    latents = [codec.encode(video) for codec in codecs]
    assert len(latents[1].sharding.device_set) == 8
    assert error(latents[1], latents[0]) < 1e-5
    streams = [codec.stream() for codec in codecs]
    for i in range(3):
        block = np.asarray(latents[0][:, i : i + 1])
        expected, found = (np.asarray(decode(block), np.int32) for decode in streams)
        assert abs(found - expected).max() <= 1


def test_columns_are_split_in_the_program(small: Any) -> None:
    mesh = sharding.make_mesh({"sequence": 4}, jax.devices()[:4])
    params = sharding.abstract(
        jax.eval_shape(lambda: vae.init_params(SMALL, jax.random.key(0))), mesh
    )
    place = sharding.named(mesh, (None, None, None, None, "columns"))
    latents = jax.ShapeDtypeStruct((1, 1, 3, 4, 16), jnp.float32, sharding=place)
    state = vae_stream.init_stream(SMALL, 1, 4, 16)
    with jax.set_mesh(mesh):
        first = jax.jit(vae_stream.decode_step).lower(params, state, latents).compile()
        state = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            jax.eval_shape(vae_stream.decode_step, params, state, latents)[1],
            first.output_shardings[1],
        )
        step = jax.jit(vae_stream.decode_step).lower(params, state, latents).compile()
    for place in jax.tree.leaves(first.output_shardings[1]):
        assert place.shard_shape((1, 4, 16, 8))[2] == 4
    text = step.as_text()
    assert " collective-permute" in text
    gathered = re.findall(r"f32\[([\d,]+)\]\S* all-gather", text)
    # Keys and values of the middle attention, at the smallest resolution.
    assert all(np.prod([int(n) for n in size.split(",")]) <= 4 * 16 * 8 for size in gathered)


def test_every_parameter_names_its_axes() -> None:
    boxed = jax.eval_shape(lambda: vae.init_params(SMALL, jax.random.key(0)))
    leaves = jax.tree.leaves(boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    for leaf in leaves:
        assert len(leaf.names) == leaf.value.ndim
        assert {name for name in leaf.names if name} <= set(sharding.RULES)


@pytest.mark.parametrize(
    ("method", "shape", "message"),
    [
        ("encode", (1, 5, 3, 17, 16), "17 x 16 pixels; rows and columns must divide by 4.*16 x 16"),
        ("encode", (1, 7, 3, 16, 16), r"7 pixel frames.*1 \+ 4k.*[Dd]rop the last 2"),
        ("moments", (1, 3, 5, 16, 16), r"expected \[b, f, 3, y, x\]"),
        ("decode", (1, 3, 2, 4, 4), r"expected \[b, f, 3, y, x\]"),
        ("decode", (1, 0, 3, 4, 4), "f >= 1"),
    ],
)
def test_odd_shapes_are_refused(small: Any, method: str, shape: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vae.WanVAE(SMALL).apply({"params": small}, jnp.zeros(shape), method=method)


def test_stream_of_another_size_is_refused(small: Any) -> None:
    state = vae_stream.init_stream(SMALL, 1, 2, 3)
    with pytest.raises(ValueError, match="init_stream"):
        vae_stream.decode_step(small, state, jnp.zeros((1, 1, 3, 2, 4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": (1.0,)}, "every latent channel"),
        ({"multipliers": (1, 2)}, "between each two stages"),
        ({"multipliers": (1, 3, 5), "shortcuts": True}, "divide each other"),
    ],
)
def test_odd_configs_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)

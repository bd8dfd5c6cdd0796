"""Files of adapters: read and written in the conventions of others, merged, and chosen while a model runs."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from goldens import error
from live import CONFIG, OPTIONS, make_weights
from safetensors.numpy import load_file, save_file

from oneforcing_jax import generate, serve, sharding
from oneforcing_jax.convert import lora, to_lora
from oneforcing_jax.convert.lora import Lora, Pair
from oneforcing_jax.data.origin import read_origin
from oneforcing_jax.errors import InputError, Refused
from oneforcing_jax.generation import merging, pretrained, streaming
from oneforcing_jax.generation.adapters import Adapters, File
from oneforcing_jax.generation.loading import Loading
from oneforcing_jax.generation.scene import Look
from oneforcing_jax.live import wire
from oneforcing_jax.live.studio import Wish
from oneforcing_jax.models import trees, wan
from oneforcing_jax.models.products import low_rank
from oneforcing_jax.models.products.low_rank import LowRank
from oneforcing_jax.setup.ranges import options

D, F = CONFIG.dim, CONFIG.ffn_dim
MATRICES = {
    **{f"{a}.{m}": (D, D) for a in ("self_attn", "cross_attn") for m in "qkvo"},
    "ffn.0": (D, F), "ffn.2": (F, D),
}  # fmt: skip
RNG = np.random.default_rng(0)


WORDS = "a red square"


def drawn(*shape):
    return RNG.standard_normal(shape, np.float32) / 4


@pytest.fixture(scope="module")
def adapters():
    """Of all matrices of all layers and one other, in two ranks and with an alpha of their own."""
    pairs = {}
    for layer, (name, (d, e)) in itertools.product(range(CONFIG.num_layers), MATRICES.items()):
        rank = 2 if name == "ffn.0" else 3
        path = ("blocks", *name.split("."), "kernel")
        pairs[path, layer] = Pair(drawn(d, rank), drawn(rank, e), 5.0)
    return Lora(pairs, {}, "drawn")


@pytest.fixture(scope="module")
def weights(tmp_path_factory, random_params):
    return make_weights(tmp_path_factory.mktemp("lora"), random_params)


def out_of(layout, folder, name="style"):
    return folder / (name if layout == "peft" else f"{name}.safetensors")


def same(one, other):
    assert one.pairs.keys() == other.pairs.keys()
    for place, pair in one.pairs.items():
        for mine, theirs in zip(pair, other.pairs[place], strict=True):
            assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("layout", to_lora.LAYOUTS)
def test_a_file_comes_back_bit_by_bit(adapters, tmp_path, layout):
    first, again = out_of(layout, tmp_path), out_of(layout, tmp_path, "again")
    to_lora.write(adapters, layout, first)
    read = lora.read(first)
    same(read, adapters)
    to_lora.write(read, layout, again)
    for file in first.rglob("*") if first.is_dir() else [first]:
        assert (again / file.name if again.is_dir() else again).read_bytes() == file.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        to_lora.write(adapters, layout, first)


def test_what_is_written_has_the_names_of_others(adapters, tmp_path):
    names = {}
    for layout in to_lora.LAYOUTS:
        to_lora.write(adapters, layout, out_of(layout, tmp_path, layout))
        file = (
            tmp_path / layout / lora.WEIGHTS
            if layout == "peft"
            else out_of(layout, tmp_path, layout)
        )
        names[layout] = set(load_file(file))
    assert "diffusion_model.blocks.1.self_attn.q.lora_A.weight" in names["comfyui"]
    assert "transformer.blocks.1.attn2.to_out.0.lora_B.weight" in names["diffusers"]
    assert "base_model.model.blocks.0.ffn.net.0.proj.lora_A.weight" in names["peft"]
    assert {
        "lora_unet_blocks_1_ffn_2.alpha",
        "lora_unet_blocks_0_cross_attn_k.lora_down.weight",
    } <= names["kohya"]
    settings = json.loads((tmp_path / "peft" / lora.SETTINGS).read_text())
    assert (settings["r"], settings["lora_alpha"], settings["peft_type"]) == (3, 5.0, "LORA")
    assert settings["rank_pattern"] == {f"blocks.{n}.ffn.net.0.proj": 2 for n in (0, 1)}


@pytest.mark.parametrize("layout", ["comfyui", "kohya"])
def test_diffusers_converts_what_is_written(adapters, tmp_path, layout):
    """Its own reader gives the same changes under its names."""
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    to_lora.write(adapters, layout, tmp_path / "x.safetensors")
    convert = {
        "comfyui": theirs._convert_non_diffusers_wan_lora_to_diffusers,
        "kohya": theirs._convert_musubi_wan_lora_to_diffusers,
    }[layout]
    state = {n: torch.from_numpy(x) for n, x in load_file(tmp_path / "x.safetensors").items()}
    found = {n: x.numpy() for n, x in convert(state).items()}
    to_lora.write(adapters, "diffusers", tmp_path / "y.safetensors")
    expected = load_file(tmp_path / "y.safetensors")
    assert found.keys() == expected.keys()
    for name in expected:
        if "lora_A" in name:
            down, up = (x[name] for x in (found, expected)), name.replace("lora_A", "lora_B")
            mine, own = (x[up] @ a for x, a in zip((found, expected), down, strict=True))
            assert error(mine, own * 5 / expected[name].shape[0]) < 1e-6


def read(tmp_path, tensors, metadata=None, name="x.safetensors"):
    save_file({n: np.ascontiguousarray(x) for n, x in tensors.items()}, tmp_path / name, metadata)
    return lora.read(tmp_path / name)


DOWN, UP = drawn(4, D), drawn(D, 4)  # as PyTorch has them
PLACE = ("blocks", "self_attn", "q", "kernel"), 1
SAID = {"transformer.lora_alpha": 2, "transformer.alpha_pattern": {"blocks.1.attn1.to_q": 8}}


@pytest.mark.parametrize(
    ("names", "alpha", "metadata", "scale"),
    [
        ("transformer.blocks.1.attn1.to_q.lora_{A}.weight", None, None, 1.0),
        ("transformer.blocks.1.attn1.to_q.lora_{A}.weight", None, {lora.METADATA: json.dumps(SAID)}, 2.0),
        ("lora_unet_blocks_1_self_attn_q.lora_{down}.weight", 1.0, None, 0.25),
        ("lora_unet__blocks_1_self_attn_q.lora_{down}.weight", 0.0, None, 1.0),
        ("diffusion_model.blocks.1.self_attn.q.lora.{down}.weight", None, None, 1.0),
        ("diffusion_model.blocks.1.self_attn.q.lora_{A}", 2.0, None, 0.5),
        ("blocks.1.self_attn.q.lora_{A}.default.weight", None, None, 1.0),
    ],
)  # fmt: skip
def test_names_of_others_are_read(tmp_path, names, alpha, metadata, scale):
    kinds = ({"A": "A", "down": "down"}, {"A": "B", "down": "up"})
    tensors = {names.format(**kind): x for kind, x in zip(kinds, (DOWN, UP), strict=True)}
    more = {} if alpha is None else {f"{names.partition('.lora')[0]}.alpha": np.float32(alpha)}
    found = read(tmp_path, tensors | more, metadata)
    assert found.pairs.keys() == {PLACE}
    assert error(found.pairs[PLACE].change(), scale * (UP @ DOWN).T) < 1e-6


def test_a_folder_of_peft_says_its_scale(tmp_path):
    module = "base_model.model.blocks.1.self_attn.q"
    save_file(
        {f"{module}.lora_A.weight": DOWN, f"{module}.lora_B.weight": UP}, tmp_path / lora.WEIGHTS
    )
    (tmp_path / lora.SETTINGS).write_text(json.dumps({"lora_alpha": 6, "use_rslora": True}))
    assert error(lora.read(tmp_path).pairs[PLACE].change(), 3 * (UP @ DOWN).T) < 1e-6


def test_differences_of_whole_tensors_are_added(tmp_path, random_params):
    block = "diffusion_model.blocks.1."
    bias, norm, matrix, table = drawn(D), drawn(D), drawn(F, D), drawn(1, 6, D)
    tensors = {
        f"{block}self_attn.q.lora_A.weight": DOWN, f"{block}self_attn.q.lora_B.weight": UP,
        f"{block}self_attn.q.diff_b": bias, f"{block}norm3.diff": norm,
        f"{block}ffn.0.diff": matrix, f"{block}diff_m": table,
        "diffusion_model.head.head.diff_b": drawn(16),
    }  # fmt: skip
    found = read(tmp_path, tensors)
    params = random_params(wan.model(CONFIG))
    found.check(params)
    flat = {path: lora.merged(path, x, [(found, 0.5)]) for path, x in trees.flat(params).items()}
    old = params["blocks"]
    same_path = ("blocks", "ffn", "0", "kernel")
    assert np.array_equal(flat[same_path][0], old["ffn"]["0"]["kernel"][0])
    assert error(flat[same_path][1], old["ffn"]["0"]["kernel"][1] + matrix.T / 2) < 1e-6
    assert error(flat["blocks", "norm3", "scale"][1], old["norm3"]["scale"][1] + norm / 2) < 1e-6
    assert error(flat["blocks", "modulation"][1], old["modulation"][1] + table[0] / 2) < 1e-6
    assert (
        error(
            flat["blocks", "self_attn", "q", "bias"][1], old["self_attn"]["q"]["bias"][1] + bias / 2
        )
        < 1e-6
    )
    to_lora.write(found, "comfyui", tmp_path / "again.safetensors")
    again = lora.read(tmp_path / "again.safetensors")
    assert again.differences.keys() == found.differences.keys()
    for place, x in found.differences.items():
        assert np.array_equal(np.squeeze(again.differences[place]), np.squeeze(x))
    with pytest.raises(InputError, match="found differences of 5 whole tensors"):
        to_lora.write(found, "kohya", tmp_path / "no.safetensors")


@pytest.mark.parametrize(
    ("module", "tensors", "said"),
    [
        ("0.self_attn.k_img", {"lora_A": DOWN}, "of Wan, found one of 'blocks.0.self_attn.k_img'"),
        ("0.self_attn.q", {"lora_A": DOWN}, r"both adapters of a matrix, found \['down'\]"),
        ("0.self_attn.q", {"dora_scale": DOWN}, "found 'blocks.0.self_attn.q.dora_scale'"),
        ("0.norm3", {"lora_A": DOWN, "lora_B": UP}, "expected both adapters of a matrix"),
        ("0.self_attn.q", {"lora_A": DOWN, "lora_B": UP[:, :3]}, "expected adapters of one rank"),
        ("0.self_attn.q", {"lora_A": DOWN[0, 0], "lora_B": UP}, "expected adapters of one rank"),
        (
            "0.self_attn.q",
            {"lora_A": DOWN, "lora_B": UP, "alpha": UP},
            "expected one number as alpha",
        ),
        ("0.self_attn.q", {"diff": UP[0]}, "expected a matrix"),
        ("0.self_attn.q", {"lora_A": DOWN * np.nan, "lora_B": UP}, "expected finite weights"),
        ("999999.self_attn.q", {"lora_A": DOWN}, "expected layers below 1000"),
    ],
)
def test_what_is_no_adapter_is_refused(tmp_path, module, tensors, said):
    tensors = {f"blocks.{module}.{name}": x for name, x in tensors.items()}
    with pytest.raises(InputError, match=said):
        read(tmp_path, tensors)


def test_adapters_of_another_model_are_refused(adapters, weights, tmp_path):
    to_lora.write(adapters, "comfyui", tmp_path / "a.safetensors")
    wide = wan.model(dataclasses.replace(CONFIG, ffn_dim=40))
    with pytest.raises(InputError, match=r"found \[24, 32\] of blocks.ffn.0.kernel, layer 0"):
        Adapters(wide, [File(tmp_path / "a.safetensors")])
    with pytest.raises(InputError, match="files of different names"):
        Adapters(wan.model(CONFIG), [File(tmp_path / "a.safetensors")] * 2)
    own = wan.model(CONFIG, low_rank.product(LowRank(2)))
    with pytest.raises(InputError, match="adapters of their own; merge these first"):
        Adapters(own, [File(tmp_path / "a.safetensors")])
    with pytest.raises(InputError, match="lora: expected a .safetensors file"):
        lora.read(tmp_path / "none.safetensors")
    assert File.of("a:0.5") == (File.of("a").file, 0.5) and File.of("c:/b") == File.of("c:/b")
    with pytest.raises(InputError, match=f"{weights}: expected a stage with low_rank"):
        merging.trained(weights)


def test_files_are_merged_into_weights_that_are_read_again(adapters, weights, tmp_path):
    files = [File(tmp_path / "a.safetensors", 0.5), File(tmp_path / "b.safetensors")]
    half = Lora({PLACE: adapters.pairs[PLACE]}, {}, "half")
    to_lora.write(adapters, "kohya", files[0].file)
    to_lora.write(half, "diffusers", files[1].file)
    merging.merge(weights, files, tmp_path / "out")
    found, old = (pretrained.find(x, dtype="float32").params() for x in (tmp_path / "out", weights))
    for name in MATRICES:
        path = ("blocks", *name.split("."), "kernel")
        kernels = [trees.flat(x)[path] for x in (found, old)]
        for layer in (0, 1):
            change = adapters.pairs[path, layer].change(1.5 if (path, layer) == PLACE else 0.5)
            assert error(kernels[0][layer], np.asarray(kernels[1][layer]) + change) < 1e-6
    assert np.array_equal(found["head"]["kernel"], old["head"]["kernel"])


def made_studio(weights, encoders, files=()):
    given = [f"--checkpoint={weights}", f"--encoders={encoders}", *OPTIONS]
    given += [f"--lora={file.file}:{file.weight}" for file in files]
    found = serve.STREAMED | vars(serve._parser("serve").parse_args(given))
    return serve.make_studio(options(Loading, found), options(Look, found), 2000)


@pytest.fixture(scope="module")
def files(adapters, tmp_path_factory):
    """Two, the second of one matrix and a difference."""
    folder = tmp_path_factory.mktemp("files")
    files = [File(folder / "one.safetensors", 0.5), File(folder / "two.safetensors")]
    to_lora.write(adapters, "comfyui", files[0].file)
    difference = {(("head", "bias"), None): drawn(16)}
    two = Lora({PLACE: adapters.pairs[PLACE]}, difference, "two")
    to_lora.write(two, "comfyui", files[1].file)
    return files


@pytest.fixture(scope="module")
def studio(weights, files):
    return made_studio(weights, weights, files)


def frames(studio, adapter=""):
    wish = wire.wish_of({"prompt": WORDS, "adapter": adapter, "first_steps": 1}, studio)
    blocks = itertools.islice(studio.make(wish, lambda _: WORDS), 3)
    return np.concatenate([made.frames for made in blocks])


def test_a_server_changes_adapters_without_compiling(studio):
    assert studio.adapters == {"one": 0.5, "two": 1.0}
    compilations = []

    def heard(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(seconds)

    first = frames(studio)
    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        changed = [frames(studio, name) for name in ("one", "two")]
        assert np.array_equal(frames(studio), first)
        assert not compilations
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    for one, other in itertools.combinations([first, *changed], 2):
        assert not np.array_equal(one, other)
    with pytest.raises(Refused, match=r"adapter: expected one of \['one', 'two'\]"):
        wire.wish_of({"prompt": WORDS, "adapter": "three"}, studio)
    assert studio.origin(Wish(WORDS, adapter="one")).settings["adapter"] == "one:0.5"


@pytest.mark.long
def test_it_shows_what_merged_weights_show(studio, files, weights, tmp_path):
    """And without an adapter what the plain model shows, to the bit."""
    assert np.array_equal(frames(made_studio(weights, weights)), frames(studio))
    for file in files:
        merging.merge(weights, [file], tmp_path / file.name)
        merged = frames(made_studio(tmp_path / file.name, weights))
        assert np.abs(merged.astype(int) - frames(studio, file.name)).max() <= 2


@pytest.mark.long
def test_a_video_says_its_adapters(files, weights, tmp_path):
    file, out = files[0].file, tmp_path / "x.mp4"
    command = [f"--checkpoint={weights}", *OPTIONS, "--prompt=a red square", f"--out={out}"]
    generate.main([*command, f"--lora={file}:0.5"])
    assert read_origin(out)["settings"]["lora"] == [File(file, 0.5).said]
    with pytest.raises(SystemExit, match="lora"):
        generate.main(command)
    with pytest.raises(SystemExit, match="--lora: expected a causal student"):
        generate.main([*command, f"--lora={file}", "--teacher"])


def test_several_are_used_together(adapters, weights, tmp_path):
    files = [File(tmp_path / "one.safetensors", 0.5), File(tmp_path / "two.safetensors", -1.0)]
    for file in files:
        to_lora.write(adapters, "comfyui", file.file)
    model = wan.model(CONFIG)
    found = Adapters(model, files)
    mesh = sharding.first_device()
    base = streaming.load(weights, dtype="float32").maker.params
    params = found.chosen(base, found.weights, mesh)
    path, layer = PLACE
    leaves = params["blocks"][layer]["self_attn"]["q"]
    assert (
        leaves["down"].shape == (D, 6)
        and leaves["kernel"] is base["blocks"][layer]["self_attn"]["q"]["kernel"]
    )
    assert error(leaves["down"] @ leaves["up"], -adapters.pairs[path, layer].change(0.5)) < 1e-6
    alone = Adapters(model, files, together=False)
    with pytest.raises(InputError, match="one file at a time"):
        alone.chosen(base, found.weights, mesh)
    with pytest.raises(InputError, match=r"expected a name among \['one', 'two'\], found 'x'"):
        alone.chosen(base, {"x": 1.0}, mesh)

"""Every config and stage, generation and the VAE, compiled for accelerators that are not here.

`pytest -m tpu_compile` needs the extra plan-tpu, `pytest -m gpu_compile` the extra plan-gpu; programs that
are equal but for constants are compiled once a worker, so `--dist loadgroup` is quickest. What runs is tested
elsewhere: here is what the compilers of real targets take, and which kernels and collectives they make of it.
"""

import functools
import hashlib
import importlib.util
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from oneforcing_jax import sharding
from oneforcing_jax.causal import structures
from oneforcing_jax.causal.cache import Window
from oneforcing_jax.families import wan21
from oneforcing_jax.generation.student import Student
from oneforcing_jax.models.kernels import cudnn
from oneforcing_jax.models.vae_layers import VAEConfig
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup.run import Run
from oneforcing_jax.targets import generation, kernels, measure, programs, topology
from oneforcing_jax.training import tiny
from oneforcing_jax.training.train import trained

CONFIGS = sorted(p for p in Path("configs").glob("*.py") if p.stem != "base")
MESHES = {
    "sharded": ["--config.mesh.data=1", "--config.mesh.fsdp=4"],
    "sequence": ["--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.sequence=2"],
}
# Stages of different configs can be the same program: they go to one worker.
TRAINING = [
    pytest.param(
        file.stem, stage, mesh, marks=pytest.mark.xdist_group(f"{stage}-{mesh}"),
        id=f"{file.stem}-{stage}-{mesh}",
    )
    for mesh in MESHES
    for file in CONFIGS
    for stage in trained(Run.of(configs.load(file)))
]  # fmt: skip
TARGETS = {"tpu_compile": "tpu:v5e:2x2", "gpu_compile": "gpu:h100:4"}
PACKAGES = {"tpu_compile": "libtpu", "gpu_compile": "jax_cuda12_plugin"}
ON = [
    pytest.param(
        target,
        marks=[
            getattr(pytest.mark, mark),
            pytest.mark.skipif(
                importlib.util.find_spec(PACKAGES[mark]) is None,
                reason=f"needs the compiler {PACKAGES[mark]}: extra plan-{mark[:3]}",
            ),
        ],
        id=mark[:3],
    )
    for mark, target in TARGETS.items()
]
# The kernel of each platform, and the scope of what may not stand in its place.
KERNELS = {"tpu": "tpu_custom_call", "cuda": "__cudnn$fmha"}
PLAIN = "attention_xla"


@pytest.fixture(autouse=True)
def no_cache():
    """Without a device there is nothing to load a cached program into."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


find = functools.cache(topology.find)
_texts: dict[str, str] = {}


def compiled(program, target):
    """The compiled program's text; one program for all that differ in nothing but constants."""
    with jax.set_mesh(program.mesh):
        traced = program.call.trace(*program.arguments)
        lowered = traced.lower(lowering_platforms=(target.platform,))
    key = hashlib.sha256(re.sub(r"dense<[^>]*>", "", lowered.as_text()).encode()).hexdigest()
    if key not in _texts:
        options = measure.NO_TRITON if target.platform == "cuda" else {}
        _texts[key] = lowered.compile(compiler_options=options).as_text()
    return _texts[key]


def load(name, mesh):
    """A tiny config in bfloat16, as accelerators compute."""
    half = [f"--config.{net}.dtype=bfloat16" for net in ("generator", "teacher", "critic")]
    return Run.of(configs.load(f"configs/{name}.py", [*MESHES[mesh], *half], tiny.shrink))


def assert_kernels(text, target):
    assert KERNELS[target.platform] in text
    assert PLAIN not in text


def in_layers(text, program, kind):
    """Collectives of a kind, inside the layers, between the devices that share the tokens of a clip."""
    size = program.mesh.shape
    sharing = size["context"] * size["sequence"] * size["tensor"]
    return [
        k
        for k in kernels.read(text, program.mesh.size).kernels
        if k.sent
        and k.sent.kind == kind
        and "/layer/" in k.source
        and "key_value" not in k.source.split("cross_attention/")[-1]  # of the prompt
        and len({device // sharing for device in k.sent.group}) == 1
    ]


@pytest.mark.parametrize("target", ON)
@pytest.mark.parametrize(("name", "stage", "mesh"), TRAINING)
def test_training(name, stage, mesh, target):
    target, run = find(target), load(name, mesh)
    for program in programs.train(run, stage, target.devices):
        text = compiled(program, target)
        assert_kernels(text, target)
        exchanged = in_layers(text, program, "all-to-all")
        assert bool(exchanged) == (mesh == "sequence")
        assert all(k.sent.dtype == "bf16" for k in exchanged)
        assert not [k.source for k in in_layers(text, program, "all-gather")]


def small_video(*more):
    """Two layers of the student over two devices, latents of Wan's VAE."""
    model = ["dim=256", "ffn_dim=128", "num_heads=2", "num_layers=2", "text_dim=64", "text_len=16"]
    size = ["latents.rows=8", "latents.columns=8", "latents.frames=3", "mesh.sequence=2"]
    fields = (*size, *(f"generator.{field}" for field in model), *more)
    return Run.of(configs.load("configs/framewise.py", [f"--config.{field}" for field in fields]))


@pytest.mark.parametrize(
    ("window", "reads"),
    [(Window(), 1), (Window(3, 1), 1), (Window(3, 1, relative=True), 2)],
    ids=["all", "ring", "sink"],
)
@pytest.mark.parametrize("target", ON)
def test_generation(target, window, reads, monkeypatch):
    """Streams of one video on two devices: the cache is updated where it lies, a sink's keys too. On GPUs
    both passes of a block read it at once where they see the same of it."""
    target = find(target)
    monkeypatch.setattr(generation, "Student", functools.partial(Student, window=window))
    made = generation.generate(small_video(), target.devices)
    blocks = [
        p for p in made if p.readings[0].name.startswith(("generate/first", "generate/steady"))
    ]
    assert len(blocks) == 2
    for program in blocks:
        text = compiled(program, target)
        assert_kernels(text, target)
        cache = program.arguments[1][0].k
        bytes_of_a_device = cache.size * cache.dtype.itemsize // 2
        copies = [k for k in kernels.read(text, 2).kernels if k.opcode == "copy"]
        assert max((k.read for k in copies), default=0) < bytes_of_a_device
    if target.platform == "cuda":
        layers, stored = len(program.arguments[1]), math.prod(cache.shape[1:3])
        calls = re.findall(rf"{re.escape(KERNELS['cuda'])}.*?operand_layout_constraints=(.*)", text)
        parts = cudnn.KEY_PARTS
        whole, cut = f"bf16[1,{stored},", f"bf16[{parts},{stored // parts},"
        assert sum(whole in found or cut in found for found in calls) == reads * layers
        # GELU is computed with the product before it; a layer has 27 kernels, besides exchanges.
        assert text.count('"epilogue":"BIAS_GELU"') == layers
        assert window.size or len(kernels.read(text, 2).kernels) <= 81


@pytest.mark.parametrize("target", ON)
def test_vae(target, monkeypatch):
    """Steps of streamed decodes, by a small VAE and the tiny decoder, over two devices; an encode."""
    target = find(target)
    narrow = functools.partial(
        VAEConfig, width=8, blocks=1, multipliers=(1, 2), time_downsample=(True,)
    )
    monkeypatch.setattr(wan21, "VAEConfig", narrow)
    run = small_video("latents.columns=16")
    mesh = programs.video_mesh(run, target.devices)
    steps = [*programs.decode(run, mesh), *programs.decode(run, mesh, "tiny")]
    for program in (*steps, programs.encode(run, target.devices)[0]):
        sent = {k.sent.kind for k in kernels.read(compiled(program, target), 2).kernels if k.sent}
        assert ("collective-permute" in sent) == (program.mesh.size == 2)


@pytest.mark.parametrize("target", ON[1:])
def test_structures(target):
    """Forward and backward pass of 9 frames take 5 calls each, where devices share heads and queries too."""
    target = find(target)
    mesh = sharding.make_mesh({"context": 2, "sequence": 2}, target.devices)
    place = sharding.named(mesh, ("batch", None, "tokens", "heads", None))
    x = jax.ShapeDtypeStruct((1, 9, 16, 2, 64), jnp.bfloat16, sharding=place)
    attend = structures.structured(structures.block_causal((1,) * 9))

    def total(q, k, v):
        return sharding.by_heads(attend, q, k, v, None)[0].astype(float).sum()

    gradients = jax.jit(jax.grad(total, (0, 1, 2)))
    program = programs.Program((), gradients, (x, x, x), mesh, state=None)
    text = compiled(program, target)
    assert_kernels(text, target)
    assert text.count(f'custom_call_target="{KERNELS["cuda"]}') == 2 * 5

"""Matrices of eight bits: what they hold, how they are read, and how far a student of them is from itself."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import error

from oneforcing_jax import demos, generate, sharding
from oneforcing_jax.causal.plan import make_plan
from oneforcing_jax.commands import precision as command
from oneforcing_jax.errors import InputError
from oneforcing_jax.evaluation import precision
from oneforcing_jax.generation import pretrained, reduced
from oneforcing_jax.generation.making import Making
from oneforcing_jax.generation.noise import sample_keys, seeded
from oneforcing_jax.generation.student import Student
from oneforcing_jax.models import wan
from oneforcing_jax.models.model import unstacked
from oneforcing_jax.models.products import eight_bits
from oneforcing_jax.models.products.eight_bits import EightBits
from oneforcing_jax.models.trees import flat
from oneforcing_jax.models.wan import WanConfig

CONFIG = WanConfig(32, 48, 2, 1, 4, 4, text_dim=16, text_len=8, freq_dim=16)
KINDS = list(eight_bits.KINDS)
# The greatest error in a column whose greatest number is 1: half a step, of fp8 of 32 in 448.
STEPS = {"int8": 1 / 254, "fp8": 1 / 28}


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_is_rounded_by_columns_and_multiplies_as_it_is_merged(kind):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(2, 16, 8)).astype(np.float32) * 10.0 ** np.arange(-4, 4)
    kernel[..., 3] = 0
    stacked = eight_bits.quantised(
        {"blocks": {"ffn": {"0": {"kernel": jnp.asarray(kernel), "bias": jnp.ones((2, 8))}}}},
        EightBits(kind),
    )["blocks"]["ffn"]["0"]
    assert stacked["kernel"].dtype == eight_bits.KINDS[kind] and stacked["scale"].shape == (2, 8)
    merged = np.asarray(eight_bits.merged(stacked))
    greatest = np.abs(kernel).max(1, keepdims=True)
    assert (np.abs(merged - kernel) <= STEPS[kind] * greatest * (1 + 1e-6)).all()
    assert not np.array_equal(merged, kernel)
    one = {name: leaf[1] for name, leaf in stacked.items()}
    x = jnp.asarray(rng.normal(size=(4, 16)), jnp.bfloat16)
    found = eight_bits.multiply(x, one, (None, None))
    assert found.dtype == x.dtype
    for column in range(8):  # each has a size of its own
        expected = np.asarray(x, np.float32) @ merged[1][:, column]
        assert np.abs(np.asarray(found[:, column], np.float32) - expected).max() <= 0.01 * np.abs(
            expected
        ).max(initial=1e-30)


@pytest.mark.parametrize("text", ["int4", "int8:", "fp8:ffn.1", "int8:head", ""])
def test_what_is_no_precision_is_refused(text):
    with pytest.raises(
        InputError, match="expected int8 or fp8, and after a colon names among self"
    ):
        EightBits.of(text)


def test_only_matrices_of_layers_have_eight_bits_where_they_are_not_kept():
    eight = EightBits.of("fp8:self_attn.q,ffn.2")
    assert EightBits.of(str(eight)) == eight and str(EightBits("int8")) == "int8"
    model = wan.model(dataclasses.replace(CONFIG, dtype=jnp.dtype("bfloat16")))
    served = model.with_product(eight_bits.product(eight))
    like = served.in_use(sharding.first_device())
    small = {".".join(p[1:-1]) for p, x in flat(like).items() if x.dtype.itemsize == 1}
    assert small == set(eight_bits.MATRICES) - {"self_attn.q", "ffn.2"}
    assert flat(like)["blocks", "self_attn", "q", "kernel"].dtype == jnp.bfloat16


def test_the_student_in_the_package_is_read_in_eight_bits():
    source, eight = pretrained.find(demos.folder("toy")), EightBits("fp8", ("ffn.2",))
    served, params = reduced.load(source, eight)
    like = served.model.in_use(sharding.first_device(), apart=True)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), like
    )
    expected = eight_bits.quantised(unstacked(source.params()), eight)
    for found, other in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        assert np.array_equal(np.asarray(found), np.asarray(other))


def test_a_video_says_its_precision():
    def made(*more):
        given = ["--demo", "--prompt=a circle moving left", "--out=a.mp4", *more]
        return Making.of(vars(generate._parser("generate").parse_args(given)))

    assert made("--precision=int8:ffn.2").origins().settings["precision"] == "int8:ffn.2"
    assert "precision" not in made().origins().settings
    for more in ("--lora=a.safetensors", "--teacher"):
        with pytest.raises(InputError, match=f"found {more.partition('=')[0]}; leave one out"):
            made("--precision=fp8", more)


def test_the_worst_block_is_found(random_params):
    model = wan.model(CONFIG)
    student = Student(model, unstacked(jax.tree.map(jnp.asarray, random_params(model))))
    plan = make_plan(2, 1, [1000.0], 5.0)
    noise = seeded(sample_keys([3], [0]), (4, 4, 4))
    text = np.random.default_rng(1).normal(size=(1, 8, 16)).astype(np.float32)
    condition = model.condition({"text": text})
    latents = student.clip(noise, student.prepare(condition), plan)
    clips = [precision.Clip("it", noise, condition, latents)]
    assert precision.compared(student, clips, plan).psnr > 110
    worst = {}
    for kind, keep in itertools.product(KINDS, ((), eight_bits.MATRICES[:8])):
        eight = EightBits(kind, keep)
        tried = student.of(precision.rounded(student.params, eight))
        worst[kind, bool(keep)] = precision.compared(tried, clips, plan).psnr
    assert 20 < worst["fp8", False] < min(worst["fp8", True], worst["int8", False] - 6)
    assert worst["int8", False] < worst["int8", True] < 80
    eight = EightBits("int8")
    served = Student(
        model.with_product(eight_bits.product(eight)), eight_bits.quantised(student.params, eight)
    )
    # What is tried without a program of its own is what is served.
    assert abs(precision.compared(served, clips, plan).psnr - worst["int8", False]) < 0.5
    # Behind a block lies what was given in place of what was made.
    other = student.of(precision.rounded(student.params, EightBits("fp8")))
    prepared = other.prepare(condition)
    *_, last = other.stream(noise, prepared, plan, clean=latents)
    (continued,) = other.stream(noise, prepared, plan[1:], latents[:, :1])
    assert error(last, continued) < 1e-5 < error(last, other.clip(noise, prepared, plan)[:, 1:])


def test_agreement_is_told_of_each_block():
    clean = np.arange(48, dtype=np.float32).reshape(1, 4, 3, 2, 2)
    other = clean.copy()
    other[:, 3] += 0.47
    plan = make_plan(4, 3, [1000.0], 5.0, first_block_frames=1)
    assert np.allclose(precision.agreement(clean, other, plan), [120, 40 + 10 * np.log10(3)])


@pytest.mark.long
def test_the_command_measures_the_student_in_the_package(capsys):
    given = ["--demo", "--precision=int8", "--prompt=a circle moving left", "--programs="]
    command.main([*given, "--search"])
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 11 and "int8 beside float32: weights 1.8 MB, before 4.9 MB" in said
    with pytest.raises(SystemExit, match="int8: expected 90 dB or more in every block, found 4"):
        command.main([*given, "--limit=90"])

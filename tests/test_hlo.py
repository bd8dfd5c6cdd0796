"""The reader of compiled programs, on small programs compiled here for eight virtual devices, and on lines as
compilers for accelerators write them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from oneforcing_jax.targets import arithmetic, collectives, hlo, kernels, roofline
from oneforcing_jax.targets.chips import CHIPS


def like(*shape, dtype=jnp.float32, sharding=None):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def read(function, *arguments, devices=1, **options):
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return kernels.read(text, devices, **options)


def test_products_count():
    work = read(lambda x, y: x @ y, like(64, 128), like(128, 256))
    assert work.flops == 2 * 64 * 128 * 256
    assert work.hbm_bytes >= 4 * (64 * 128 + 128 * 256 + 64 * 256)
    batched = read(
        lambda x, y: jnp.einsum("bij,bjk->bik", x, y), like(3, 64, 128), like(3, 128, 32)
    )
    assert batched.flops == 3 * 2 * 64 * 128 * 32


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_convolutions_count_valid_positions(padding):
    def convolve(x, kernel):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=dims)

    work = read(convolve, like(2, 10, 12, 8), like(3, 3, 8, 16))
    rows, columns = (3 * 10 - 2, 3 * 12 - 2) if padding == "SAME" else (3 * 8, 3 * 10)
    assert work.flops == 2 * 2 * 8 * 16 * rows * columns


def test_loops_multiply_and_slices_count_as_slices():
    def inner(x, w):
        return jnp.tanh(x @ w), None

    def outer(x, ws):
        return jax.lax.scan(lambda x, _: jax.lax.scan(inner, x, ws), x, None, length=5)[0]

    layers, size = 7, 128
    work = read(outer, like(size, size), like(layers, size, size))
    assert work.flops == pytest.approx(5 * layers * 2 * size**3)
    assert not work.unknown
    # A layer reads its own weights and not the stack of all.
    assert work.hbm_bytes < 5 * layers * 10 * 4 * size**2


def test_an_update_in_place_counts_as_the_update():
    def write(stack, x):
        return jax.lax.dynamic_update_slice_in_dim(stack, x[None], 3, 0)

    made = jax.jit(write, donate_argnums=0).lower(like(100, 64, 64), like(64, 64)).compile()
    work = kernels.read(made.as_text())
    assert work.hbm_bytes < 10 * 4 * 64 * 64


def test_a_loop_of_unknown_length_is_named():
    def search(x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: x @ x, x)

    work = read(search, like(16, 16))
    assert work.flops == 2 * 16**3 and len(work.unknown) == 1


def test_a_conditional_takes_its_dearest_branch_as_often_as_said():
    def choose(on, x):
        return jax.lax.cond(on, lambda: x @ x @ x, lambda: x)

    one = 2 * 2 * 32**3
    arguments = like(dtype=jnp.bool_), like(32, 32)
    assert read(choose, *arguments).flops == one
    assert read(choose, *arguments, shares={"cond": 0.25}).flops == one / 4
    assert read(choose, *arguments, shares={"other": 0.25}).flops == one


@pytest.fixture(scope="module")
def mesh():
    auto = (AxisType.Auto,) * 2
    return jax.make_mesh((4, 2), ("rows", "columns"), auto)


@pytest.mark.parametrize(
    ("kind", "before", "after", "sent"),
    [
        # Bytes that each of 4 (or 2) devices sends of its part of float32 [64, 64].
        ("all-gather", P("rows"), P(), 3 * 64 * 64),
        ("all-gather", P(None, "columns"), P(), 2 * 64 * 64),
        ("all-to-all", P("rows"), P(None, "rows"), 3 * 64 * 64 / 4),
    ],
)
def test_collectives_of_layouts(mesh, kind, before, after, sent):
    def move(x):
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, after)) * 2

    work = read(move, like(64, 64, sharding=NamedSharding(mesh, before)), devices=8)
    assert work.sent == {f"{kind} f32": pytest.approx(sent)}


@pytest.mark.parametrize(
    ("kind", "function", "sent"),
    [
        ("all-reduce", lambda x: jax.lax.psum(x, "rows"), 2 * 3 / 4 * 4 * 16 * 64),
        (
            "reduce-scatter",
            lambda x: jax.lax.psum_scatter(x, "rows", tiled=True),
            3 / 4 * 4 * 16 * 64,
        ),
        (
            "collective-permute",
            lambda x: jax.lax.ppermute(x, "rows", [(0, 1), (1, 2), (2, 3), (3, 0)]),
            4 * 16 * 64,
        ),
    ],
)
def test_collectives_by_hand(mesh, kind, function, sent):
    out = P() if kind == "all-reduce" else P("rows")
    run = jax.shard_map(function, mesh=mesh, in_specs=P("rows"), out_specs=out, check_vma=False)
    work = read(run, like(64, 64, sharding=NamedSharding(mesh, P("rows"))), devices=8)
    assert work.sent == {f"{kind} f32": pytest.approx(sent)}
    assert all(len(k.sent.group) in (2, 4) for k in work.kernels if k.sent)


def test_collectives_in_a_loop_multiply(mesh):
    def step(x, _):
        return jax.lax.psum(x, "rows") * 0.1, None

    def run(x):
        return jax.lax.scan(step, x, None, length=6)[0]

    run = jax.shard_map(run, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    work = read(run, like(32, 32), devices=8)
    assert work.sent["all-reduce f32"] == pytest.approx(6 * 2 * 3 / 4 * 4 * 32 * 32)


@pytest.mark.parametrize(
    ("shape", "expected", "space"),
    [
        ("bf16[4,30,100]{2,1,0}", 4 * 30 * 100 * 2, 0),
        ("bf16[4,30,100]{2,1,0:T(8,128)(2,1)}", 4 * 32 * 128 * 2, 0),
        ("f32[4,6,36,1]{2,1,3,0:T(8,128)S(1)}", 4 * 8 * 128 * 4, 1),
        ("pred[]", 1, 0),
        ("f8e4m3fn[16]{0}", 16, 0),
    ],
)
def test_bytes_are_those_of_the_layout(shape, expected, space):
    (found,) = hlo.arrays(shape)
    assert (found.bytes, found.space) == (expected, space)


ACCELERATORS = Path(__file__).with_name("accelerators.hlo")


def test_what_compilers_for_accelerators_write():
    work = kernels.read(ACCELERATORS.read_text(), 8, keys=0.25)
    found = {k.name: k for k in work.kernels}
    assert found["y"].times == 4  # from 2 to 6
    assert found["y"].flops == 2 * 8**3 == found["gemm"].flops
    pairs = 2 * 4 * 128 * 256 * 64
    assert found["fmha"].flops == 2 * 2 * pairs and found["splash_mha_dkv.1"].flops == 2 * 4 * pairs
    assert found["fmha"].attention == arithmetic.Attention(2 * 4 * 128, 256)
    # With the gradient of queries in the same kernel, in a part for each tile of keys.
    assert found["splash_mha_dkv.2"].flops == 2 * 5 * pairs
    whole = 2 * 2 * 4 * 128 * 64
    assert (found["near"].read, found["near"].written) == (whole, 0)
    part, updated, fused = found["part-start"], found["updated"], found["fused"]
    assert part.overlaps and (part.read, part.written) == (whole / 2, 0)
    assert updated.written == 0  # in vector memory
    assert fused.read == 2 * 2 * 8**2  # one of the two through a fusion that gives it another shape
    assert found["splash_mha_fwd.1"].read == 0.25 * 2 * 2 * 2 * 4 * 256 * 64
    assert found["permute-start"].written == 2 * 8**2
    put = found[
        "put-start"
    ]  # a GPU's copy beside other kernels; it takes the update alone, and where it goes
    assert put.overlaps and (put.read, put.written) == (2 * 8**2 + 4, 2 * 8**2)
    gather, scatter = found["gather-start"], found["scatter"]
    assert gather.overlaps and gather.sent.bytes == 3 * 128 and gather.sent.group == (0, 1, 2, 3)
    assert scatter.sent.bytes == 128 / 2 and scatter.sent.group == (0, 4)
    assert set(found) == {
        *("y", "gemm", "fmha", "splash_mha_dkv.1", "splash_mha_dkv.2"),
        *(
            "near",
            "part-start",
            "updated",
            "fused",
            "splash_mha_fwd.1",
            "permute-start",
            "put-start",
            "gather-start",
            "scatter",
        ),
    }


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("{{0,2},{1,3}}", (0, 2)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("mesh['x'=2,'y'=4] {'x'}", (0, 4)),
        ("mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'y'}", (0, 4)),
        ("mesh['x'=2,'y'=4] {'x','y':(2)2}", (0, 1, 4, 5)),
        ("{}", tuple(range(8))),
    ],
)
def test_groups_of_devices(groups, expected):
    line = hlo.Instruction(
        "a", "all-gather", "", (), f"%x), replica_groups={groups}, dimensions={{0}}"
    )
    assert collectives.group(line, 8) == expected


def test_text_without_a_program_is_one_line():
    with pytest.raises(ValueError, match="expected the text of a compiled program.*found 5 char"):
        hlo.parse("hello")


def kernel(**changes):
    fields = {"name": "k", "opcode": "dot", "source": "", "times": 1.0, "flops": 0.0}
    return kernels.Kernel(**fields | {"slowness": 1.0, "read": 0.0, "written": 0.0} | changes)


def predict(*found):
    return roofline.predict(kernels.Kernels(found, ()), CHIPS["h100"], 8)


def test_the_slower_of_operations_and_bytes_counts():
    chip = CHIPS["h100"]
    products, copies = kernel(flops=chip.rate, read=1e9), kernel(read=chip.bandwidth, flops=1e9)
    assert predict(products).bound == "operations" and predict(copies).bound == "memory"
    both = predict(products, copies)
    assert both.seconds == pytest.approx(2 + 2 * chip.launch)
    assert predict(*[kernel()] * 3).bound == "launches"


def test_links_overlap_where_they_start_and_end():
    chip = CHIPS["h100"]
    near = collectives.Sent("all-gather", "bf16", chip.link, tuple(range(8)))
    work = kernel(flops=3 * chip.rate)
    assert predict(work, kernel(sent=near)).seconds == pytest.approx(4, rel=1e-4)
    assert predict(work, kernel(sent=near, overlaps=True)).seconds == pytest.approx(3, rel=1e-4)
    far = collectives.Sent("all-gather", "bf16", chip.link, (0, 8))
    slow = predict(work, kernel(sent=far, overlaps=True))
    assert slow.bound == "links" and slow.seconds == pytest.approx(chip.link / chip.network)


def test_a_collective_carried_by_several_fusions_counts_once():
    gather = "all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}"
    text = "HloModule m\n"
    for name in ("start", "beside"):
        text += f"""
%{name} (p: bf16[8]) -> bf16[32] {{
  %p = bf16[8]{{0}} parameter(0)
  ROOT %g = bf16[32]{{0}} {gather}, metadata={{op_name="block/gather"}}
}}
"""
    text += """
ENTRY %main (a: bf16[8]) -> bf16[32] {
  %a = bf16[8]{0} parameter(0)
  %one = bf16[32]{0} fusion(%a), kind=kCustom, calls=%start
  ROOT %two = bf16[32]{0} fusion(%a), kind=kCustom, calls=%beside, metadata={op_name="elsewhere"}
}
"""
    (carrier,) = [k for k in kernels.read(text, 4).kernels if k.sent]
    assert carrier.name == "one" and carrier.source == "block/gather"
    assert carrier.sent.bytes == 3 * 8 * 2


def test_float32_products_take_longer():
    text = jax.jit(lambda x: x @ x).lower(like(64, 64)).compile().as_text()
    computation = hlo.parse(text).entry
    slow = [arithmetic.slowness(computation, i) for i in computation.instructions.values()
            if i.opcode in ("dot", "custom-call")]  # fmt: skip
    assert np.all(np.array(slow) == 2.0)

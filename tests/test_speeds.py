"""Predicted seconds: the measured ones of single operations, and what lies between them."""

import itertools

import pytest

from oneforcing_jax.targets import kernels, roofline, speeds
from oneforcing_jax.targets.arithmetic import Attention
from oneforcing_jax.targets.chips import CHIPS

H200 = speeds.SPEEDS["h200"]


def kernel(**changes):
    fields = {"name": "k", "opcode": "dot", "source": "", "times": 1.0, "flops": 0.0}
    return kernels.Kernel(**fields | {"slowness": 1.0, "read": 0.0, "written": 0.0} | changes)


def predict(chip, *found):
    return roofline.predict(kernels.Kernels(found, ()), CHIPS[chip], 8)


def test_measured_points_are_hit():
    for operations, seconds in H200.products:
        assert H200.multiplies(operations) == pytest.approx(seconds)
    for rows, points in H200.attention:
        for keys, seconds in points:
            assert H200.attends(Attention(rows, keys)) == pytest.approx(seconds)
    assert H200.multiplies(2 * 4637e9) == pytest.approx(2 * 6673e-6)
    assert H200.attends(Attention(80 * 32760, 32760)) == pytest.approx(2 * 38524e-6)


def test_more_work_takes_longer():
    rows = [1, 9000, 12 * 1560, 12 * 1561, 12 * 3120, 112320, 12 * 32760, 40 * 32760, 2e6]
    keys = [1, 512, 1560, 5000, 17160, 32760, 40000]
    for few, many in itertools.pairwise(keys):
        for r in rows:
            assert H200.attends(Attention(r, few)) < H200.attends(Attention(r, many)), (r, few)
    for few, many in itertools.pairwise(rows):
        for s in keys:
            assert H200.attends(Attention(few, s)) <= H200.attends(Attention(many, s)), (few, s)
    sizes = [1e6, 1e10, 5e10, 1e12, 1e13]
    seconds = [H200.multiplies(n) for n in sizes]
    assert seconds == sorted(set(seconds))
    one = Attention(12 * 1560, 5000)
    for harder in (
        Attention(one.rows, one.keys, lengths=True),
        Attention(one.rows, one.keys, True),
    ):
        assert H200.attends(harder) > H200.attends(one)


def test_a_prediction_is_made_of_what_was_measured():
    """Attention by its shape and not by its operations, and no kernel quicker than the smallest."""
    call = kernel(flops=4 * 32760.0**2 * 12 * 128, attention=Attention(12 * 32760, 32760))
    seen = predict("h200", call)
    assert seen.bound == "attention" and seen.seconds == pytest.approx(11481e-6, rel=1e-3)
    assert predict("h200", *[kernel()] * 5).parts["launches"] == pytest.approx(5 * H200.small)
    assert predict("h200", *[kernel()] * 5).bound == "host"
    copy = kernel(read=H200.bandwidth / 2, written=H200.bandwidth / 2)
    assert predict("h200", copy).seconds == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("name", ["h100", "b200", "v5e", "v7x"])
def test_what_nobody_measured_is_the_data_sheet(name):
    chip, call = CHIPS[name], kernel(flops=4e12, attention=Attention(12 * 32760, 32760))
    assert not speeds.of(chip).source
    assert predict(name, call).parts["operations"] == pytest.approx(4e12 / chip.rate)
    assert predict(name, kernel(read=1e12)).parts["memory"] == pytest.approx(1e12 / chip.bandwidth)
    assert predict(name, kernel()).parts["launches"] == chip.launch


def test_published_steps_say_whose_they_are():
    for name in ("v5p", "v6e"):
        speed = speeds.of(CHIPS[name])
        assert "published" in speed.source and 0.2 < speed.products[0][0] / CHIPS[name].peak < 0.5
        assert speed.bandwidth == CHIPS[name].bandwidth

"""Damage to checkpoints, weights and stores: each flip, cut and deletion is seen, or changes no array."""

import runpy
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from oneforcing_jax.convert import to_orbax
from oneforcing_jax.data.store import Store
from oneforcing_jax.system import checkpoint, integrity, saved

CHECK = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "check.py"))["main"]
RNG = np.random.default_rng(0)


def damage(path, kind, rng):
    """Harms one file; the name of what was done."""
    content = bytearray(path.read_bytes())
    if kind == "deleted" or not content:
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[: rng.integers(len(content))])
    else:
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def state(seed):
    rng = np.random.default_rng(seed)
    return {"params": {"net": {"a": rng.normal(size=(40, 30)).astype(np.float32), "b": np.ones(3)}}}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two checkpoints of a run."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with checkpoint.manager(folder) as manager:
        for step in (1, 2):
            checkpoint.save(manager, step, state(step))
    return folder


def abstract():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state(0)["params"]["net"])


def load(folder):
    return jax.tree.map(np.asarray, saved.load_net(folder, "net", abstract()))


def same(one, other):
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


@pytest.mark.parametrize("kind", ["flipped", "cut", "deleted"])
def test_damaged_checkpoints_are_refused(written, tmp_path, kind):
    whole = load(written)
    rng = np.random.default_rng(len(kind))
    chosen = [p for p in files(written / "2") if rng.random() < 0.5]
    for file in chosen:
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        shutil.copytree(written, tmp_path / "c")
        damage(tmp_path / "c" / file.relative_to(written), kind, rng)
        try:
            found = load(tmp_path / "c")
        except ValueError as error:
            assert "expected the files that were written" in str(error), file
        else:
            assert same(found, whole), file
            # What no array depends on, or the checksums themselves: the checker sees it all the same.
            assert integrity.problems(tmp_path / "c" / "2") or file.name == integrity.SUMS
    assert len(chosen) > 5


def test_the_newest_whole_checkpoint_is_named(written, tmp_path):
    shutil.copytree(written, tmp_path / "c")
    (tmp_path / "c" / "99").mkdir()  # an empty folder is no checkpoint
    data = max(files(tmp_path / "c" / "2"), key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[:-1])
    like = {"params": {"net": abstract()}}
    with checkpoint.manager(tmp_path / "c") as manager:
        assert checkpoint.latest(manager) == 2
        with pytest.raises(
            ValueError, match=r"has changed; remove it, and .* continues from .*/1, which"
        ):
            checkpoint.restore(manager, like)
    shutil.rmtree(tmp_path / "c" / "2")
    with checkpoint.manager(tmp_path / "c") as manager:
        iteration, found, _ = checkpoint.restore(manager, like)
    assert iteration == 1 and same(found, {"params": state(1)["params"]})
    first = max(files(tmp_path / "c" / "1"), key=lambda p: p.stat().st_size)
    first.unlink()
    with (
        checkpoint.manager(tmp_path / "c") as manager,
        pytest.raises(ValueError, match="is missing; no other is whole"),
    ):
        checkpoint.restore(manager, like)


@pytest.mark.parametrize("kind_of_store", ["pending", "packed"])
def test_stores_see_what_is_damaged(tmp_path, kind_of_store):
    fields = {"latents": ((2, 3, 4, 4), "float16"), "text": ((8, 6), "float32")}
    store = Store.create(tmp_path / "s", 6 + (kind_of_store == "pending"), fields)
    samples = [{n: RNG.normal(size=s).astype(d) for n, (s, d) in fields.items()} for _ in range(6)]
    for i, sample in enumerate(samples):
        store.write(i, sample)
    rng, seen = np.random.default_rng(1), 0
    for trial in range(60):
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        shutil.copytree(tmp_path / "s", tmp_path / "c")
        kind = ("flipped", "cut")[trial % 2]
        folder = "pending" if kind_of_store == "pending" else "arrays"
        damage(rng.choice(files(tmp_path / "c" / folder)), kind, rng)
        try:
            damaged = Store.open(tmp_path / "c")
            found = [damaged.read(i) if done else None for i, done in enumerate(damaged.done())]
        except ValueError as error:
            seen += 1
            assert "\n" not in str(error)
        else:
            for one, sample in zip(found[:6], samples, strict=True):
                assert one is None or same(one, sample)
    assert seen > 40


def test_the_checker_says_what_is_whole(written, tmp_path, capsys):
    shutil.copytree(written, tmp_path / "stage" / "checkpoints")
    store = Store.create(tmp_path / "store", 2, {"x": ((3,), "float32")})
    store.write(0, {"x": np.ones(3, np.float32)})
    with_weights = tmp_path / "weights" / "0"
    to_orbax.save_item(with_weights / "params_model", {"a": np.ones(4, np.float32)})
    (tmp_path / "weights" / "model.json").write_text("{}")
    integrity.seal(tmp_path / "weights")
    CHECK([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["whole", "checkpoint"], ["whole", "checkpoint"], ["whole", "weights"], ["whole", "store"],
    ]  # fmt: skip
    assert lines[-1].endswith(f"{tmp_path / 'store'}: 1 of 2 samples written")
    chunk = tmp_path / "store" / "pending" / "0"
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    with pytest.raises(SystemExit, match="1"):
        CHECK([str(tmp_path)])
    out = capsys.readouterr().out
    assert "damaged store" in out and "cannot read sample 0" in out
    with pytest.raises(SystemExit, match="expected checkpoints or weights with a checksums.json"):
        CHECK([str(tmp_path / "stage" / "checkpoints" / "1" / "params_net")])

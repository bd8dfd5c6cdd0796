"""Each flipped bit of a finished checkpoint folder is seen or changes nothing that is read; other damage."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from test_convert import original

from oneforcing_jax import main, methods
from oneforcing_jax.commands import check
from oneforcing_jax.convert import to_orbax, to_torch
from oneforcing_jax.generation import pretrained
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup.run import Run
from oneforcing_jax.system import checkpoint, files, integrity
from oneforcing_jax.training import tiny

ROOT = Path(__file__).parents[1]
NOISE, STAGE = ROOT / "configs" / "noise.py", "one_forcing"
# What nobody reads to make a video, and no checksum covers.
LOGS = {"metrics.jsonl", "rates.jsonl", "tensorboard"}


@pytest.fixture(scope="module")
def stage(tmp_path_factory, random_params):
    """The folder of a stage as training leaves it, with two checkpoints of its student."""
    run = Run.of(configs.load(NOISE))
    folder = tmp_path_factory.mktemp("run") / STAGE
    params = random_params(methods.make(STAGE, run).nets["generator"].model)
    with checkpoint.manager(folder / checkpoint.FOLDER) as manager:
        checkpoint.claim(manager, {"seed": run.seed})
        for step in (1, 2):
            checkpoint.save(manager, step, {"params": {"generator": params}})
    files.write_whole(folder / checkpoint.CONFIG, run.record)
    (folder / "metrics.jsonl").write_text('{"iteration": 1}\n')
    return folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A folder of convert_wan."""
    folder = tmp_path_factory.mktemp("converted")
    original(folder / "wan")
    to_orbax.convert(str(folder / "wan"), folder / "out", report=lambda line: None)
    return folder / "out" / "transformer"


def copied(folder, to):
    """A copy, under the same name, for a stage is found by it."""
    return shutil.copytree(folder, to / folder.name)


def read(folder):
    """What a command that makes videos takes from a folder."""
    source = pretrained.find(folder)
    return dataclasses.replace(source, folder=Path()), jax.tree.map(np.asarray, source.params())


def same(one, other):
    return one[0] == other[0] and all(
        map(np.array_equal, jax.tree.leaves(one[1]), jax.tree.leaves(other[1]))
    )


def flip(file, rng):
    content = bytearray(file.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    file.write_bytes(content)


def parsed(content):
    """What a JSON file says, but for its checksum: spaces say nothing, nor does the name of the checksum."""
    try:
        found = json.loads(content)
    except ValueError:
        return None
    known = (
        {n: v for n, v in found.items() if n != files.CHECKSUM} if isinstance(found, dict) else 0
    )
    return known, len(found) if isinstance(found, dict) else 0


def flipped(folder, to, count, every=1):
    """Flips bits of each file of a folder (or of some), one at a time. Each is seen by the reader, or what it
    reads is the same; and each by the checker, or the file says the same, or is a log."""
    rng, whole, copy = np.random.default_rng(count), read(folder), copied(folder, to)
    assert same(read(copy), whole)
    chosen = [f for f in sorted(copy.rglob("*")) if f.is_file() and f.stat().st_size][::every]
    for file in chosen:
        before, opened = file.read_bytes(), True
        for _ in range(count):
            flip(file, rng)
            try:
                assert not opened or same(read(copy), whole), file
                # What is no record and changed nothing once is of another network, which nobody opens.
                opened = file.suffix == ".json"
            except ValueError as error:
                assert "expected" in str(error) and "\n" not in str(error)
            seen = any(found.verdict != "whole" for found in check.look(copy))
            says_more = parsed(file.read_bytes()) != parsed(before) or parsed(before) is None
            assert seen or LOGS & {file.name, file.parent.name} or not says_more, file
            file.write_bytes(before)
    return len(chosen)


@pytest.mark.parametrize("kind", ["stage", "converted"])
def test_a_flipped_bit_is_seen(kind, request, tmp_path):
    assert flipped(request.getfixturevalue(kind), tmp_path, 1, every=12) > 1


@pytest.mark.long
def test_every_flipped_bit_of_a_finished_run_is_seen(tmp_path, converted):
    """Ten in each file of what a run and a conversion left."""
    run = Run.of(configs.load(NOISE))
    tiny.write_noise(tmp_path / "run" / "noise", methods.make(STAGE, run).fields, 8)
    iterations = f"--config.stages.{STAGE}.iterations=2"
    main.main([f"--config={NOISE}", f"--workdir={tmp_path / 'run'}", iterations])
    assert flipped(tmp_path / "run" / STAGE, tmp_path / "c", 10) > 20
    assert flipped(converted, tmp_path / "d", 10) > 20


FORMS = {
    "a list": "[]", "null": "null", "words": "x", "no files": "{}", "nulls": '{"%s": [null, null]}',
    "a size alone": '{"%s": [1]}', "a null": '{"%s": null}', "words for sums": '{"%s": ["1", "2"]}',
    "fractions": '{"%s": [1.5, 2]}', "deep": "[" * 100_000, "no bytes": "", "negative": '{"%s": [-1, 2]}',
}  # fmt: skip


def test_checksums_of_another_form_are_a_line(stage, tmp_path):
    folder = copied(stage, tmp_path)
    sums = folder / checkpoint.FOLDER / "2" / integrity.SUMS
    name = next(iter(json.loads(sums.read_text())))
    for form, content in FORMS.items():
        sums.write_text(content % name if "%s" in content else content)
        with pytest.raises(
            ValueError, match="expected .* found that .*(checksums.json|was not there)"
        ):
            read(folder)
        assert [found.verdict for found in check.look(folder)][:2] == ["whole", "damaged"], form


def test_fewer_files_than_there_are(stage, converted, tmp_path):
    """Also hidden ones, in which zarr says what an array is; what a desktop puts there does not matter."""
    for number, (folder, pick) in enumerate(
        [(stage, "d/"), (converted, "/.z"), (converted, "model.json")]
    ):
        copy = copied(folder, tmp_path / str(number))
        (copy / ".DS_Store").write_text("x")
        sums = max(copy.rglob(integrity.SUMS))
        said = json.loads(sums.read_text())
        read(copy)
        name = next((name for name in said if pick in name and "opt" not in name), None)
        if name is None:
            continue  # this version of Orbax writes none of them
        del said[name]
        sums.write_text(json.dumps(said))
        (found,) = [found for found in check.look(copy) if found.wrong]
        assert found.wrong == [f"{name} was not there"]


def test_removed_checksums(stage, converted, tmp_path, capsys):
    copy = copied(stage, tmp_path)
    steps = [copy / checkpoint.FOLDER / name for name in "12"]
    (steps[0] / integrity.SUMS).unlink()
    with pytest.raises(ValueError, match="1: expected checksums.json in it as in 2, found none"):
        read(steps[0])
    verdicts = {found.folder: found for found in check.look(copy)}
    assert verdicts[steps[0]].unknown == "has no checksums.json"
    assert verdicts[steps[1]].verdict == "whole"
    # The newest may be of a command that was killed: it is read, and a line says so, once.
    shutil.copy(stage / checkpoint.FOLDER / "1" / integrity.SUMS, steps[0])
    (steps[1] / integrity.SUMS).unlink()
    read(copy), read(copy)
    assert capsys.readouterr().err.count("cannot be checked, for it has no checksums.json") == 1
    with pytest.raises(SystemExit, match="1"):
        check.main([str(copy)])
    assert f"unknown checkpoint {steps[1]}: has no" in capsys.readouterr().out
    # A conversion has had them from the beginning.
    shutil.copytree(converted, tmp_path / "c")
    (tmp_path / "c" / integrity.SUMS).unlink()
    with pytest.raises(
        ValueError, match="expected the checksums.json of its conversion, found none"
    ):
        read(tmp_path / "c")
    assert [found.verdict for found in check.look(tmp_path / "c")] == ["unknown", "whole"]


def test_sums_are_not_made_anew_for_what_lost_them(stage, tmp_path):
    shutil.copytree(stage / checkpoint.FOLDER, tmp_path / "c")
    (tmp_path / "c" / "1" / integrity.SUMS).unlink()
    with checkpoint.manager(tmp_path / "c"):
        pass
    assert not integrity.is_sealed(tmp_path / "c" / "1")


def test_settings_of_older_releases_are_read_with_a_line(stage, converted, tmp_path, capsys):
    copy = copied(stage, tmp_path)
    for file in (copy / checkpoint.CONFIG, copy / "checkpoints" / "run.json"):
        said = json.loads(file.read_text())
        said.pop(files.CHECKSUM)
        said.pop(checkpoint.SETTINGS, None)
        file.write_text(json.dumps(said))
    assert same(read(copy), read(stage))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "config.json: its settings cannot be checked" in lines[0]
    unknown = [found.folder.name for found in check.look(copy) if found.unknown]
    assert unknown == ["run.json", "config.json"]


def test_a_lost_config_is_not_replaced_by_what_was_asked_last(stage, tmp_path):
    shutil.copytree(stage, tmp_path / STAGE)
    (tmp_path / STAGE / checkpoint.CONFIG).rename(tmp_path / checkpoint.CONFIG)
    with pytest.raises(
        ValueError, match="expected the config that the stage was trained with, found"
    ):
        read(tmp_path / STAGE)


def test_export_compares_before_it_reads(stage, converted, tmp_path):
    for number, folder in enumerate((stage, converted)):
        copy = copied(folder, tmp_path / str(number))
        for file in sorted(copy.rglob("_METADATA")):
            file.write_bytes(file.read_bytes().replace(b"{", b"[", 1))
        with pytest.raises(ValueError, match="expected the files that were written, found that"):
            to_torch.export(copy, tmp_path / "x.pt")
        for sums in copy.rglob(integrity.SUMS):
            sums.unlink()
        with pytest.raises(
            ValueError, match="expected what Orbax writes, found what it cannot read"
        ):
            to_torch.export(copy, tmp_path / "x.pt")


STRANGE = {
    "a file": lambda c: (c / "5").write_text("x"),
    "the newest a file": lambda c: (shutil.rmtree(c / "2"), (c / "2").write_text("x")),
    "a link to nothing": lambda c: (c / "7").symlink_to("nowhere"),
    "an item a file": lambda c: (shutil.rmtree(c / "2/params_generator"), (c / "2/params_generator").touch()),
    "sums a folder": lambda c: ((c / "2/checksums.json").unlink(), (c / "2/checksums.json").mkdir()),
    "trash a file": lambda c: (c / "trash").touch(),
    "run.json a folder": lambda c: ((c / "run.json").unlink(), (c / "run.json").mkdir()),
    "a number with zeros": lambda c: shutil.copytree(c / "1", c / "003"),
    "a raised digit": lambda c: shutil.copytree(c / "1", c / "1\u00b2"),
    "a digit of another script": lambda c: shutil.copytree(c / "1", c / "3\u0663"),
    "below zero": lambda c: shutil.copytree(c / "1", c / "-3"),
}  # fmt: skip


QUICK = ("a file", "an item a file", "a raised digit")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in STRANGE]
)
def test_files_named_like_ours(name, stage, tmp_path):
    """Reading and training on end in one line, or leave the stranger alone and take the newest checkpoint."""
    whole, copy = read(stage), copied(stage, tmp_path)
    STRANGE[name](copy / checkpoint.FOLDER)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), whole[1])
    taken = []
    for work in (lambda: read(copy)[1], lambda: continued(copy, like)):
        try:
            assert same((0, work()), (0, whole[1]))
            taken.append(True)
        except (ValueError, OSError) as error:
            assert "expected" in str(error) or "cannot write" in str(error)
    left_alone = name.startswith(("a number", "a raised", "a digit", "below"))
    assert len(taken) == 2 if left_alone else len(taken) < 2
    list(check.look(copy))


def test_a_file_named_like_a_checkpoint_among_weights(converted, tmp_path):
    copy = copied(converted, tmp_path)
    (copy / "5").write_text("x")
    with pytest.raises(ValueError, match="a checkpoint, which is a folder, found something else"):
        read(copy)
    assert "damaged" in {found.verdict for found in check.look(copy)}


def continued(stage, like):
    with checkpoint.manager(stage / checkpoint.FOLDER, keep=1) as manager:
        checkpoint.claim(manager, {"seed": 0})
        step, state, _ = checkpoint.restore(manager, {"params": {"generator": like}})
        checkpoint.save(manager, step + 1, state)
    return state["params"]["generator"]


def test_a_record_knows_what_it_said(tmp_path):
    file = tmp_path / "r.json"
    file.write_bytes(files.record({"a": (1, 2.5, "é", None), "b": {"c": []}}))
    assert files.read_record(file) == {"a": [1, 2.5, "é", None], "b": {"c": []}}
    assert files.has_checksum(file)
    file.write_text(file.read_text().replace("2.5", "2.4"))
    with pytest.raises(ValueError, match="found that it has changed; restore .* 'record_crc32'"):
        files.read_record(file)

"""What stages were made from: stale ones are named and refused, and made anew beside the old ones."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from oneforcing_jax import main
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup import stages
from oneforcing_jax.setup.run import Run
from oneforcing_jax.system import checkpoint, places, saved
from oneforcing_jax.training import lineage

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools"))
import kill_stages  # noqa: E402

KIND = '''
import dataclasses
import functools

from oneforcing_jax.errors import InputError
from oneforcing_jax.setup.stages import Kind, MadeFrom, Stage


@dataclasses.dataclass(frozen=True)
class Fields:
    """A stage that writes words; it reads a network, and the folder of another stage."""

    words: str
    source: str = ""
    reads: str = ""


@dataclasses.dataclass(frozen=True)
class Config:
    pass


def work(name, fields, workdir):
    if (workdir / "stop").exists() and name == "table":
        raise InputError("stopped")
    with (workdir / name / "words.txt").open("a") as file:
        file.write(fields.words)


def prepare(run, name, fields):
    made_from = MadeFrom(
        {"words": fields.words, "seed": run.seed},
        networks={"source": fields.source} if fields.source else {},
        stores={"reads": f"{fields.reads}/store"} if fields.reads else {},
    )
    return Stage(name, functools.partial(work, name, fields), made_from=made_from)


KIND = Kind(Fields, lambda fields: (Config,), prepare)
'''
CONFIG = f"""
import runpy

def get_config():
    c = runpy.run_path({str(kill_stages.CONFIG)!r})["get_config"]()
    kind = "written.kind"
    c.stages.notes = {{"kind": kind, "words": "a", "source": "teacher:model"}}
    c.stages.table = {{"kind": kind, "words": "b", "source": "random", "reads": "notes"}}
    c.run = ("notes", "table")
    return c
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A function that runs stages in a folder: fields, options; it gives what an error says."""
    (tmp_path / "written").mkdir()
    (tmp_path / "written" / "kind.py").write_text(KIND)
    (tmp_path / "config.py").write_text(CONFIG)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "written.kind", raising=False)

    def run(*fields, redo=(), workdir=tmp_path / "work"):
        given = [f"--config={tmp_path / 'config.py'}", f"--workdir={workdir}"]
        given += [f"--config.{field}" for field in fields]
        try:
            main.main([*given, *(f"--redo={names}" for names in redo)])
        except SystemExit as end:
            assert "\n" not in str(end.code)
            return str(end.code)
        return ""

    return run


def files(folder):
    """The files of a folder, but for the lock and what was compiled."""
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != "lock")
    return {p: p.read_bytes() for p in found if "compiled" not in p.parts}


def weights(folder, value):
    """A folder of checkpoints with a network."""
    shutil.rmtree(folder, ignore_errors=True)
    with checkpoint.manager(folder) as to:
        checkpoint.save(to, 1, {"params": {"net": {"weight": np.full(3, value, np.float32)}}})


@pytest.mark.long
def test_more_iterations_upstream_make_stale_what_follows(command, tmp_path, capsys):
    """As with a finished run whose table was printed again."""
    kill_stages.make_store(tmp_path / "work" / "noise")
    chain = ("run=teacher,notes,table", "stages.teacher.batch=8")
    two, three = ((*chain, f"stages.teacher.iterations={n}") for n in (2, 3))
    assert not command(*two)
    before = files(tmp_path / "work")
    assert not command(*two, "stages.teacher.log_every=7", "stages.teacher.microbatch=8")
    found = command(*three)
    assert "found stale ones: notes ('teacher', which it reads, trains on from iter" in found
    assert "2 to 3); table ('notes', which it reads, is stale)" in found
    assert "--redo=notes,table, which makes" in found
    # Part of them is not enough, and nothing has changed but the config of the last command.
    assert "--redo=notes,table" in command(*three, redo=["notes"])
    after = files(tmp_path / "work")
    assert {p.relative_to(tmp_path / "work").as_posix() for p in before if before[p] != after[p]} == {
        "notes/words.txt", "table/words.txt", "config.json",
    }  # fmt: skip
    rate = "stages.teacher.optimisers.model.learning_rate=0.5"
    assert "teacher (stages.teacher.optimisers.model.learning_rate was 0.001, now 0.5)" in command(
        *two, rate
    )

    # A stage that trains on may be optimised otherwise, and is then compared with what it ended with.
    assert not command(*three, rate, redo=["table,notes"])
    assert "notes is made anew; what was there is in" in "".join(capsys.readouterr())
    assert (tmp_path / "work" / "notes.old-1" / "words.txt").read_text() == "aa"
    assert (tmp_path / "work" / "notes" / "words.txt").read_text() == "a"
    assert saved.newest(tmp_path / "work" / "teacher" / checkpoint.FOLDER) == 3
    assert not (tmp_path / "work" / "teacher.old-1").exists()
    assert not command(*three, rate)
    assert "teacher (stages.teacher.optimisers.model.learning_rate was 0.5, now" in command(*three)
    found = command(*two, rate)
    assert "teacher (it has trained 3 iterations, now 2); notes ('teacher', which it" in found


def test_made_anew_once_and_continued_where_it_was_stopped(command, tmp_path):
    work = tmp_path / "work"
    weights(tmp_path / "net", 1.0)
    fields = ("stages.notes.words=c", f"stages.notes.source={tmp_path / 'net'}:net")
    assert not command(fields[1])
    (work / "stop").touch()
    assert "--redo=notes,table" in command(*fields)
    for _ in range(2):
        assert "stopped" in command(*fields, redo=["notes", "table"])
    assert (work / "notes" / "words.txt").read_text() == "cc"
    (work / "stop").unlink()
    # What was asked for meanwhile is stale all the same.
    assert "notes (words was 'c', now 'd')" in command("stages.notes.words=d", fields[1])
    assert not command(*fields, redo=["notes", "table"])
    assert {p.name for p in work.glob("*.old-*")} == {"notes.old-1", "table.old-1"}
    # It has ended: the next one is a wish of its own, whatever there is.
    assert not command(*fields, redo=["table"])
    assert (work / "table.old-2" / "words.txt").is_file() and not (work / "notes.old-2").exists()
    assert not (work / lineage.ANEW).exists()
    assert "expected stages among ['notes', 'table'], found 'tabel'" in command(
        *fields, redo=["tabel"]
    )


def test_weights_of_a_directory_count_by_their_checksums(command, tmp_path):
    weights(tmp_path / "net", 1.0)
    source = f"stages.notes.source={tmp_path / 'net'}:net"
    assert not command(source)
    shutil.copytree(tmp_path / "net", tmp_path / "moved")
    moved = f"stages.notes.source={tmp_path / 'moved'}:net"
    assert not command(moved)
    assert "notes (source was '" in command("stages.notes.source=random")
    weights(tmp_path / "moved", 2.0)
    assert "moved:net' has other checksums than when it was read); table (" in command(moved)
    # Who has read them needs them no more.
    shutil.rmtree(tmp_path / "net")
    assert not command(source)


def test_shared_stages_serve_other_seeds_through_links(command, tmp_path):
    """As tools/study.py shares them."""
    weights(tmp_path / "net", 1.0)
    given = f"stages.notes.source={tmp_path / 'net'}:net"
    assert not command(given, "run=notes", workdir=tmp_path / "shared")
    shared = files(tmp_path / "shared")
    for seed in (0, 1):
        (tmp_path / f"seed{seed}").mkdir()
        (tmp_path / f"seed{seed}" / "notes").symlink_to(tmp_path / "shared" / "notes")
        own = (given, f"seed={seed}", "run=table")
        for _ in range(2):
            assert not command(*own, workdir=tmp_path / f"seed{seed}")
    assert files(tmp_path / "shared") == shared
    # The link of a stage that is made anew is renamed, and the others' stage stays.
    both = (given, "seed=1")
    assert "notes (seed was 0, now 1)" in command(*both, workdir=tmp_path / "seed1")
    assert not command(*both, redo=["notes,table"], workdir=tmp_path / "seed1")
    assert (tmp_path / "seed1" / "notes.old-1").is_symlink()
    assert files(tmp_path / "shared") == shared


def test_a_run_of_an_older_version_goes_on(command, tmp_path, capsys):
    assert not command("stages.notes.source=random")
    for stage in ("notes", "table"):
        (tmp_path / "work" / stage / lineage.RECORD).unlink()
    capsys.readouterr()
    assert not command("stages.notes.source=random", "stages.notes.words=c")
    said = [line for line in "".join(capsys.readouterr()).splitlines() if line]
    assert len(said) == 1 and said[0].endswith("recorded what they were made from: notes, table")
    assert not (tmp_path / "work" / "notes" / lineage.RECORD).exists()
    file = tmp_path / "work" / "notes" / lineage.RECORD
    for damaged in ("{", '{"version": 1, "fields": {}}', '{"version": 2}'):
        file.write_text(damaged)
        assert str(file) in command("stages.notes.source=random")


@pytest.mark.parametrize("bucket", ["gs"], indirect=True)
def test_nothing_is_renamed_in_a_bucket(command, tmp_path, bucket):
    run = Run.of(configs.load(tmp_path / "config.py"))
    places.write(bucket / "notes" / "words.txt", b"a")
    places.write(bucket / "notes" / lineage.RECORD, b'{"version": 1, "fields": {"words": "b"}, '
                 b'"inputs": {}, "course": [[0, {}]]}')  # fmt: skip
    with pytest.raises(lineage.InputError, match=r"notes \(words was 'b', now 'a'\). Set it back"):
        lineage.refuse(run, stages.prepare(run), bucket)
    with pytest.raises(lineage.InputError, match="where nothing can be renamed; copy gs://"):
        lineage.refuse(run, stages.prepare(run), bucket, ["notes"])


CAUSAL = {"teacher_forcing", "ode_pairs", "ode"}
LAST = {"one_forcing", "report"}


@pytest.mark.parametrize(
    ("field", "stale"),
    [
        ("mesh.fsdp=2", set()),
        ("wandb=project", set()),
        ("generator.remat=full", set()),
        ("one_forcing.critic_clips=in_turn", set()),
        ("stages.one_forcing.samples.every=0", set()),
        ("stages.exam.least.colour=0.1", set()),
        ("stages.world.count=64", {"world"}),
        ("blocks.steps=(1000,500)", LAST),
        ("blocks.frames=2", CAUSAL | LAST),
        ("shift=4.0", {"teacher", "exam"} | CAUSAL | LAST),
        ("seed=1", {"world", "teacher", "exam"} | CAUSAL | LAST),
        ("teacher.dtype=bfloat16", {"teacher", "one_forcing"}),
        ("one_forcing.guidance=1.0", {"one_forcing"}),
        ("evaluation.samples=16", {"exam", "report"}),
        ("ode.kept=(0,1,2,3)", {"ode_pairs", "ode", "one_forcing"}),
        ("stages.report.videos=1", {"report"}),
    ],
)
def test_fields_that_results_follow_from(field, stale):
    """By themselves; what reads a stale stage is stale, too."""

    def made_from(*overrides):
        run = Run.of(configs.load(ROOT / "configs" / "tiny.py", overrides))
        return {stage.name: stage.made_from for stage in stages.prepare(run)}

    before, after = made_from(), made_from(f"--config.{field}")
    assert {name for name in before if before[name].fields != after[name].fields} == stale
    assert json.loads(json.dumps(before["one_forcing"].course)) == before["one_forcing"].course

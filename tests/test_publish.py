"""A trained student becomes a folder of its own, and goes to the hub and back."""

import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from test_convert import EXPORT, run

from oneforcing_jax import Pipeline, cli, demos
from oneforcing_jax.convert import card
from oneforcing_jax.generation import pretrained
from oneforcing_jax.system import files, integrity

COMMIT = "ab" * 20


@pytest.fixture
def demo(tmp_path):
    """The shipped student with a card that could be published."""
    folder = shutil.copytree(demos.folder("toy"), tmp_path / "demo")
    page = (folder / card.README).read_text()
    (folder / card.README).write_text(f"---\nlicense: apache-2.0\n---\n\n{page}")
    integrity.seal(folder)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Stands in for the hub: a folder a repository, with one commit."""
    pytest.importorskip("huggingface_hub")

    class Api:
        def create_repo(self, name, private, exist_ok):
            (tmp_path / "hub" / name).mkdir(parents=True)
            assert exist_ok and not private

        def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
            for name in allow_patterns:
                target = tmp_path / "hub" / repo_id / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder_path / name, target)
            return SimpleNamespace(oid=COMMIT)

    def snapshot(name, revision, allow_patterns):
        assert revision == COMMIT
        return str(tmp_path / "hub" / name)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    return tmp_path / "hub"


def test_it_goes_to_the_hub_and_comes_back(demo, hub, capsys, monkeypatch):
    monkeypatch.chdir(hub.parent)
    cli.main(["publish", str(demo), "--to=owner/toy", "--dry_run"])
    said = capsys.readouterr().out
    assert "demo: whole, " in said and "  model.json" in said and not hub.exists()
    cli.main(["publish", str(demo), "--to=owner/toy"])
    assert f"published as owner/toy@{COMMIT}" in capsys.readouterr().out
    back = Pipeline.from_pretrained(f"owner/toy@{COMMIT}")
    assert back.model.source.identity == pretrained.find(demo).identity


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda f: (f / "model.json").write_text("{}"),
            "expected what is whole, found model.json ",
        ),
        (lambda f: (f / "checksums.json").unlink(), "expected what is whole, found "),
        (lambda f: said(f, ""), "it lacks license, in lines .*; a section '## Licence'; a section"),
        (lambda f: said(f, card.template()), "it lacks words for <apache-2.0, or that of"),
    ],
)
def test_what_is_not_ready_is_not_sent(break_it, message, demo, hub):
    break_it(demo)
    with pytest.raises(SystemExit, match=message):
        cli.main(["publish", str(demo), "--to=owner/toy"])
    assert not hub.exists()


def said(folder, page):
    (folder / card.README).write_text(page)
    integrity.seal(folder)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ({"block_frames": -1}, "expected the video of a student, found block_frames -1"),
        ({"steps": ["x"]}, "expected the video of a student, found steps"),
        ({"wings": 2}, "expected the video of a student, found wings 2"),
        (7, "expected the video of a student, found  7"),
    ],
)
def test_strange_videos_are_refused(video, message, demo):
    rewritten(demo, video)
    with pytest.raises(ValueError, match=message):
        pretrained.find(demo)


def rewritten(folder, video):
    """Puts what it makes into the record of a student."""
    record = json.loads((folder / "model.json").read_text())
    del record["record_crc32"]
    record["nets"]["params_generator"]["more"]["video"] = video
    (folder / "model.json").write_bytes(files.record(record))
    integrity.seal(folder)


def test_a_record_says_what_its_student_makes(demo):
    was = pretrained.find(demo)
    rewritten(demo, {"block_frames": 2, "first_frames": None, "steps": [1000, 500], "shift": 4.0})
    found = pretrained.find(demo)
    assert (found.block_frames, found.first_frames, found.steps) == (2, None, (1000, 500))
    assert found.shift == 4.0 and found.frames == was.frames


@pytest.mark.long
def test_a_student_is_packed(tmp_path):
    from test_to_pipeline import weights

    found = weights(tmp_path, causal=True)
    run(EXPORT, checkpoint=found, layout="student", dtype="float32", out=tmp_path / "out")
    ours, packed = pretrained.find(found), pretrained.find(tmp_path / "out")
    for name in ("family_name", *pretrained.LAYOUT):
        assert getattr(ours, name) == getattr(packed, name), name
    jax.tree.map(np.testing.assert_array_equal, ours.params(), packed.params())
    page = (tmp_path / "out" / card.README).read_text()
    assert "81 frames of 480x832" in page and "$" not in page and card.wrong(page)
    assert Pipeline.from_pretrained(tmp_path / "out").model.source.folder.parent == tmp_path / "out"

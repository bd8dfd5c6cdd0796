"""Folders of a stranger, for tools/fuzz.py: code in them, and damage to what says that they are whole."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from fuzz_fixture import NOISE, STAGE, TEXT, Case, generation

from oneforcing_jax.families.encoders import ENCODERS
from oneforcing_jax.families.records import MODEL
from oneforcing_jax.generation import pretrained
from oneforcing_jax.system import checkpoint, files, integrity, saved

# What the stranger's code does: it leaves a file, and ends the command as a wrong success.
RAN, WRONG = "ran", 77
# A video that the fixture's weights can make.
SIZE = ("--size=16x16", "--frames=2")
# Names by which a folder may try to reach that code, and names of ours that are no such part.
NAMES = (
    "payload", "given.payload", "given.run.payload", ".payload", "..given.payload", "given/payload",
    "oneforcing_jax..payload", "oneforcing_jax.given.payload", "oneforcing_jaxx.payload", "given.payload\n",
    "oneforcing_jax/../given.payload", "given:payload", "os", "os.path", "antigravity.fly", "", ".", " ",
    "oneforcing_jax.setup.config", "oneforcing_jax.families.encoders", "oneforcing_jax.training.sources",
    "encoders",
    "oneforcing_jax.toy.codec", "oneforcing_jax.__main__", "given.payload.load", "g\u0131ven.payload",
    3, None, ["given.payload"], {"given.payload": 1}, "x" * 9999, "a." * 5000 + "a",
)  # fmt: skip


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return os._exit, (WRONG,)


def parts(rng: random.Random, given: Path) -> Case:
    """Records that name modules of the stranger's, and pickles: no code of theirs may run."""
    code = f"import os\n\nopen({str(given.parent / RAN)!r}, 'w').close()\nos._exit({WRONG})\n"
    for folder in (given, given / "run", given.parent):
        (folder / "payload.py").write_text(code)
    sys.path.insert(0, str(given.parent))
    if rng.random() < 0.3:
        return _pickle(rng, given)
    name = rng.choice(NAMES)
    config, encoders = given / "run" / STAGE / checkpoint.CONFIG, given / "encoders" / ENCODERS
    file = rng.choice((config, encoders))
    said = files.read_record(file)
    if file == encoders:
        said["kind"] = name
    elif rng.random() < 0.3:
        said["family"] = name
    else:
        said["stages"][STAGE][rng.choice(("method", "method", "kind"))] = name
    unread = file == config and said["stages"][STAGE]["method"] == STAGE
    file.write_bytes(files.record(said))
    command = rng.choice(
        ("generate", "encode_videos", "import_lmdb", "report", "export_torch", "check")
    )
    (given / "c.csv").write_text("video,caption\n0.mp4,a red square\n")
    run = given / "run"
    options = {
        "generate": generation(given, "--prompt=a red square"),
        "encode_videos": [f"--videos={given / 'videos'}", f"--captions={given / 'c.csv'}",
                          f"--config={NOISE}", f"--checkpoint={given / 'encoders'}",
                          f"--out={given / 'new'}"],
        "import_lmdb": [f"--lmdb={given / 'lmdb'}", f"--checkpoint={given / 'encoders'}",
                        f"--text_len={TEXT[0]}", f"--out={given / 'new'}"],
        "report": [str(run), f"--out={given / 'new.html'}"],
        "export_torch": [f"--checkpoint={run / STAGE}", f"--out={given / 'new.pt'}"],
        "check": [str(run)],
    }[command]  # fmt: skip
    read = command == "generate" or file == encoders and command in ("encode_videos", "import_lmdb")
    return Case(command, options, wrong=read and not unread)


def _pickle(rng: random.Random, given: Path) -> Case:
    """Pickled code where weights or arrays are expected."""
    how = rng.choice(("weights", "noise", "embeddings"))
    if how == "weights":
        tensors: dict[str, Any] = torch.load(given / "student.pt", weights_only=True)
        place = tensors["generator"] if rng.random() < 0.5 else tensors
        place[rng.choice((*list(place)[:3], "x"))] = Code()
        protocol = rng.choice((2, 4))
        torch.save(tensors, given / "code.pt", pickle_protocol=protocol)
        options = [f"--source={given / 'code.pt'}", f"--out={given / 'new'}", "--num_heads=2"]
        return Case("convert_wan", options, wrong=True)
    array = np.array([Code(), None], object)
    file = given / ("code.npz" if how == "noise" else "code.npy")
    np.savez(file, noise=array) if how == "noise" else np.save(file, array)
    option = f"--noise_file={file}" if how == "noise" else f"--prompt_embeds={file}"
    return Case("generate", generation(given, "--prompt=a red square", option), wrong=True)


FORMS = ("[]", "null", "3", '"x"', "{}", "", "{", "[" * 10**5, "\xff", '{"a": [1, 2]}')
ENTRIES: tuple[Any, ...] = (
    None, [], [None, None], [1], [1, 2, 3], ["1", "2"], {"a": 1}, [1.5, 2], [-1, 2], [True, 1], "x", 3,
    [0, 0],
)  # fmt: skip
# Names that something else than a checkpoint may have among checkpoints.
STRANGERS = (
    "5", "007", "1\u00b2", "3\u0663", "-1", "trash", "9" * 30, "5.orbax-checkpoint-tmp-0", "params_x", "x_y",
)  # fmt: skip


def folders(rng: random.Random, given: Path) -> Case:
    """Checksums of other forms, removed, or of fewer files; settings with flipped bits; strangers among
    checkpoints: seen by the checker, and by what reads the folder or without any effect on it."""
    folder = given / rng.choice((f"run/{STAGE}", f"run/{STAGE}", "weights"))
    shutil.copytree(folder, given / "whole" / folder.name)
    sums = rng.choice(sorted(folder.rglob(integrity.SUMS)))
    how = rng.choice((_other_form, _removed, _fewer, _settings, _strangers))
    seen = how(rng, folder, sums)
    command = rng.choice(("check", "check", "export_torch", "generate"))
    if command == "check":
        return Case(command, [str(folder)], same=lambda: not seen)
    if command == "export_torch":
        options = [f"--checkpoint={folder}", f"--out={given / 'e.pt'}"]
        return Case(command, options, same=lambda: _exported(given / "e.pt", given / "student.pt"))
    options = ["--prompt=a red square", f"--checkpoint={folder}", *SIZE]
    whole = given / "whole" / folder.name
    return Case(command, generation(given, *options), same=lambda: _same(folder, whole))


def _exported(one: Path, other: Path) -> bool:
    made, expected = (torch.load(f, weights_only=True)["generator"] for f in (one, other))
    return made.keys() == expected.keys() and all(torch.equal(made[k], expected[k]) for k in made)


def _same(folder: Path, whole: Path) -> bool:
    """Whether a command that makes videos takes the same from two folders."""
    one, other = pretrained.find(folder), pretrained.find(whole)
    arrays = map(np.array_equal, jax.tree.leaves(one.params()), jax.tree.leaves(other.params()))
    return dataclasses.replace(one, folder=whole) == dataclasses.replace(
        other, folder=whole
    ) and all(arrays)


def _other_form(rng: random.Random, folder: Path, sums: Path) -> bool:
    """Whether the checker must see what was done; so do the others."""
    if rng.random() < 0.5:
        sums.write_bytes(rng.choice(FORMS).encode("latin-1"))
    else:
        said = json.loads(sums.read_text())
        for name in rng.sample(sorted(said), rng.randint(1, len(said))):
            said[name] = rng.choice(ENTRIES)
        sums.write_text(json.dumps(said))
    return True


def _removed(rng: random.Random, folder: Path, sums: Path) -> bool:
    sums.unlink()
    return True


def _fewer(rng: random.Random, folder: Path, sums: Path) -> bool:
    said = json.loads(sums.read_text())
    for name in rng.sample(sorted(said), rng.randint(1, len(said))):
        del said[name]
        if rng.random() < 0.5:
            file = sums.parent / name
            content = bytearray(file.read_bytes() or b"\0")
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            file.write_bytes(content)
    sums.write_text(json.dumps(said))
    return True


def _settings(rng: random.Random, folder: Path, sums: Path) -> bool:
    names = (checkpoint.CONFIG, saved.RUN_FILE, MODEL, "made_from.json")
    file = rng.choice([f for name in names for f in sorted(folder.rglob(name))])
    before, content = json.loads(file.read_text()), bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    try:
        return bool(json.loads(content) != before)
    except ValueError:
        return True


def _strangers(rng: random.Random, folder: Path, sums: Path) -> bool:
    place = folder / checkpoint.FOLDER if (folder / checkpoint.FOLDER).is_dir() else folder
    stranger = place / rng.choice(STRANGERS)
    how = rng.choice(("file", "folder", "link", "newest"))
    if how == "newest":
        stranger = saved.numbered(place)[-1]
        shutil.rmtree(stranger)
        stranger.write_text("x")
    elif how == "file":
        stranger.write_text("x")
    elif how == "folder":
        stranger.mkdir()
    else:
        stranger.symlink_to("nowhere")
    return how == "newest" or how in ("file", "link") and stranger.name == "5"


CLASSES: dict[str, Callable[[random.Random, Path], Case]] = {"parts": parts, "folders": folders}

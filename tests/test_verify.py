"""Converted weights beside diffusers: equal for a random Wan2.1 folder, different for another one's files."""

import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_convert import CONVERT, run, write_json
from test_wan_path import published

from oneforcing_jax import cli

WEIGHTS = "diffusion_pytorch_model.safetensors"


def verify(folder, *more):
    cli.main(["verify", str(folder), "--against=diffusers", *map(str, more)])


@pytest.mark.long
def test_a_random_folder_is_equal_and_an_altered_one_is_named(tmp_path, capsys):
    published(tmp_path / "wan")
    run(CONVERT, source=tmp_path / "wan", out=tmp_path / "weights")
    capsys.readouterr()
    verify(tmp_path / "weights")
    *lines, last = capsys.readouterr().out.splitlines()
    rows = [re.split(r"  +", line) for line in lines]
    assert [(row[0], row[1]) for row in rows] == [
        ("text", "prompt"), ("text", "negative"), ("transformer", "flow"), ("transformer", "clip"),
        ("vae", "encode"), ("vae", "decode"), ("vae", "clip's pixels"),
    ]  # fmt: skip
    assert all(float(row[2].split()[1]) < 1e-4 and row[-1] == "equal" for row in rows)
    assert "weights: equal in 7 of 7, against diffusers" in last

    # One matrix of the published files is another than the one that was converted.
    shutil.copytree(tmp_path / "wan", tmp_path / "other")
    state = load_file(tmp_path / "other" / WEIGHTS)
    state["blocks.1.ffn.2.weight"] = np.flip(state["blocks.1.ffn.2.weight"], 0).copy()
    save_file(state, tmp_path / "other" / WEIGHTS)
    with pytest.raises(SystemExit) as end:
        verify(tmp_path / "weights", "--only=transformer", f"--published={tmp_path / 'other'}")
    out = capsys.readouterr().out
    assert end.value.code == 1 and "weights: differs in transformer flow" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], "expected a folder of tools/convert_wan.py with transformer, vae, text, found none of"),
        (["--only=head"], "expected parts among transformer, vae, text, found 'head'"),
        (["--only=vae"], "with vae, found no vae; convert the published weights into it"),
        (["transformer"], "gone: expected a folder of Wan2.1 .*, found nothing of that name"),
        (["transformer", "--published={0}/a.pt"], "a.pt: expected the folder of a Wan model, found a"),
        (["transformer", "--published={0}"], "expected a folder of Wan2.1 .* found no transformer among"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_one_line(change, message, tmp_path):
    if change[:1] == ["transformer"]:
        change = change[1:]
        record = {"format": 1, "source": str(tmp_path / "gone"), "nets": {}}
        write_json(tmp_path / "transformer/model.json", record)
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(SystemExit, match=message) as end:
        verify(tmp_path, *(word.format(tmp_path) for word in change))
    assert str(end.value).startswith("error: ") and "\n" not in str(end.value)

"""docs/runbook.md followed at the smallest size: random weights and a folder of videos to a VBench score."""

import json
import shutil

import numpy as np
import pytest
from test_convert import write_torch
from test_docs import ROOT, calls
from test_docs import blocks as fenced
from test_docs import sandbox as sandbox  # noqa: PLC0414, a fixture
from test_vbench import PACKAGE
from test_wan_path import TEXT, VAE, WAN, published

from oneforcing_jax import cli
from oneforcing_jax.data.store import Store
from oneforcing_jax.data.video import write_video
from oneforcing_jax.evaluation.vbench.score import DIMENSIONS
from oneforcing_jax.toy.world import TINY, videos

SIZES = {"dim", "ffn_dim", "num_heads", "num_layers", "text_dim", "text_len"}
NETS = [
    f"--config.{net}.{name}={getattr(WAN, name)}"
    for net in ("generator", "critic", "teacher")
    for name in sorted(SIZES)
]
LATENTS = [f"--config.latents.{name}" for name in ("frames=3", "rows=4", "columns=4")]
STUDENT = ["--checkpoint=weights/causal_ode"]
MADE = [*STUDENT, "--frames=9", "--size=32x32", "--first_steps=1000"]
# Commands as they begin, and what makes them small; None: not run here. The last of several values counts.
SMALL = {
    "convert --source Wan-AI/Wan2.1-T2V-1.3B ": ["--source=wan"],
    "convert --source Wan-AI/Wan2.1-T2V-14B ": ["--source=wan"],
    "convert --source causal_ode.pt ": ["--num_heads=2"],
    "verify ": None,  # tests/test_verify.py
    "encode ": [*NETS, *LATENTS],
    "check ": [],
    "info ": [],
    "train --config=framewise --workdir=/tmp/try ": None,  # tests/test_configs.py
    "plan ": None,  # needs a compiler for GPUs
    "train --config=framewise --workdir=runs/framewise ": None,  # tests/test_wan_path.py
    "generate ": MADE,
    "evaluate report ": None,  # of a run
    "evaluate vbench make ": [*MADE, "--vbench=list.json"],
    "evaluate vbench check ": ["--vbench=list.json"],
    "evaluate vbench run ": ["--vbench=list.json", "--device=cpu"],
    "evaluate vbench score ": [],
    "export ": STUDENT,
}  # fmt: skip
CAPTION = "a red square moving left"


def footage(folder):
    """Three recordings, each of two rendered scenes, of another rate and shape than the clips."""
    folder.mkdir()
    big = np.ones((1, 3, 2, 1), np.uint8)
    rendered = [np.repeat(np.kron(video, big), 4, 0) for _, video in videos(6, 0, TINY)]
    for i in range(3):
        write_video(folder / f"{i}.mp4", np.concatenate(rendered[2 * i : 2 * i + 2]), 24, crf=4)
    rows = [{"video": f"{i}.mp4", "caption": CAPTION} for i in range(3)]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.long
def test_the_runbook_leads_to_a_score(sandbox, tmp_path, monkeypatch):
    assert TEXT.width == WAN.text_dim and VAE.channels == WAN.in_dim
    monkeypatch.chdir(tmp_path)
    published(tmp_path / "wan")
    state = student_of(tmp_path / "wan")
    write_torch(tmp_path / "causal_ode.pt", {"generator": state})
    (tmp_path / "captions.jsonl").write_text(footage(tmp_path / "clips"))
    row = {"prompt_en": CAPTION, "dimension": list(DIMENSIONS)}
    (tmp_path / "list.json").write_text(json.dumps([row]))
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "vbench.py").write_text(PACKAGE)
    (packages / "torch.py").write_text("device = str\n")
    python = tmp_path / "vbench_env/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/bash\nPYTHONPATH={packages} exec {shutil.which("python3")} "$@"\n')
    python.chmod(0o755)

    ran = []
    for block in fenced(ROOT / "docs/runbook.md", "bash"):
        for name, *words in calls(block, sandbox):
            line = " ".join(words) + " "
            begun = [start for start in SMALL if name == "oneforcing" and line.startswith(start)]
            assert begun or name != "oneforcing", line
            for start in begun:
                ran.append(start)
                words = [word.replace(str(sandbox), str(tmp_path)) for word in words]
                if SMALL[start] is not None:
                    cli.main([*words, *SMALL[start]])
    assert set(ran) == set(SMALL)
    score = json.loads((tmp_path / "score.json").read_text())
    (model,) = score.values()
    assert 0 < model["total"] < 1 and not model["missing"]
    assert Store.open(tmp_path / "store").done().all()
    for made in ("cat.mp4", "student.pt"):
        assert (tmp_path / made).is_file()


def student_of(folder):
    """The transformer of a folder under the names of a student's file."""
    from safetensors.numpy import load_file

    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    return {f"model.{name}": value for name, value in state.items()}

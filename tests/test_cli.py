"""The command `oneforcing`: its verbs, and that a wheel in another folder has all that they need."""

import importlib.util
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import jax
import pytest

import oneforcing_jax
from oneforcing_jax import cli

ROOT = Path(__file__).parents[1]
# What a wheel is built of.
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "oneforcing_jax", "configs")
# Shows the help of every verb, one after the other.
HELPS = """
from oneforcing_jax import cli
for verb in cli.VERBS:
    try:
        cli.main([*verb.split(), "--help"])
    except SystemExit as end:
        assert not end.code, verb
"""
# A config of a user that begins with one of ours.
OWN = """
import runpy
from oneforcing_jax.setup.config import ours

def get_config():
    c = runpy.run_path(str(ours()["toy"]))["get_config"]()
    c.seed = 7
    return c
"""


@pytest.mark.parametrize("verb", cli.VERBS)
def test_a_verb_runs_a_command_that_calls_itself_by_its_name(verb, capsys):
    assert list(inspect.signature(cli.find(verb)).parameters) == ["arguments", "prog"]
    with pytest.raises(SystemExit) as end:
        cli.main([*verb.split(), "--help"])
    assert not end.value.code and f"usage: oneforcing {verb} " in capsys.readouterr().out
    assert cli.VERBS[verb].words in cli.usage()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["trian"], "expected a verb among train, .*evaluate, .*info, found 'trian'; see oneforcing --h"),
        (["--config=toy"], "expected a verb among train, .*found '--config=toy'"),
        (["evaluate", "toy"], "among curvature, .*vbench, found 'toy'; see oneforcing evaluate --help"),
        (["", "info"], "expected a verb among train, .*found ''"),
    ],
)  # fmt: skip
def test_a_wrong_verb_is_one_line(given, line):
    with pytest.raises(SystemExit, match=f"^error: .*{line}") as end:
        cli.main(given)
    assert "\n" not in end.value.code


def test_help_needs_no_jax():
    program = (
        "import sys; from oneforcing_jax import cli; cli.main(sys.argv[1:]); print(*sys.modules)"
    )
    for given in (["--help"], ["evaluate"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *given],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.startswith("usage: oneforcing ") and "jax" not in done.stdout.split()
        assert ("  train  " in done.stdout) == ("evaluate" not in given), given


def test_info_says_what_is_here_and_how_to_get_the_rest(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "lmdb" else find(n))
    cli.main(["info"])
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert said[0] == f"oneforcing_jax {oneforcing_jax.__version__} in {ROOT / 'oneforcing_jax'}"
    assert f"jax {jax.__version__}" in said and f"devices {jax.device_count()} cpu, cpu" in said
    assert "attention oneforcing_jax.models.kernels.xla" in said and "extra serve here" in said
    assert 'extra lmdb without lmdb: pip install "oneforcing_jax[lmdb]"' in said


def run(words, folder, environment):
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (words, done.stderr[-2000:])
    return done.stdout


def pasted(kind, start):
    """The block of README that holds a line."""
    blocks = re.findall(rf"^```{kind}\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    return next(block for block in blocks if start in block)


@pytest.mark.long
def test_a_wheel_in_an_empty_environment_and_another_folder(tmp_path, light_environment):
    """It is built of a copy: an older build leaves files."""
    source, here, elsewhere = tmp_path / "source", tmp_path / "here", tmp_path / "elsewhere"
    for folder in (source, elsewhere):
        folder.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    plain = {name: value for name, value in light_environment.items() if name != "PYTHONPATH"}
    python, script = str(here / "bin" / "python"), str(here / "bin" / "oneforcing")
    pip = [python, "-m", "pip", "-q", "--disable-pip-version-check"]
    limits = ["-c", str(ROOT / "tests" / "constraints.txt")]
    run([sys.executable, "-m", "venv", str(here)], tmp_path, plain)
    run([*pip, "wheel", "--no-deps", f"--wheel-dir={tmp_path}", str(source)], tmp_path, plain)
    (wheel,) = tmp_path.glob("oneforcing_jax-*.whl")
    run([*pip, "install", *limits, str(wheel)], tmp_path, plain)
    assert wheel.name.split("-")[1] == oneforcing_jax.__version__
    shutil.rmtree(source)

    assert "  train  " in run([script, "--help"], elsewhere, plain)
    helps = run([python, "-c", HELPS], elsewhere, plain)
    assert helps.count("usage: oneforcing ") == len(cli.VERBS)
    assert "' evaluate vbench make'" in run([script, "completion"], elsewhere, plain)
    said = run([script, "info"], elsewhere, plain)
    assert f"in {here}" in said and 'install "oneforcing_jax[serve]"' in said
    line = next(line for line in pasted("bash", "--demo").splitlines() if "--demo" in line)
    said = run([script, *shlex.split(line, comments=True)[1:]], elsewhere, plain)
    assert "toy knows prompts like" in said and (elsewhere / "circle.mp4").stat().st_size > 1000
    (elsewhere / "circle.mp4").unlink()
    run([python, "-c", pasted("python", "from_pretrained")], elsewhere, plain)
    assert (elsewhere / "circle.mp4").stat().st_size > 1000
    train = ["--config=tiny", "--workdir=run", "--tiny", "--config.run=teacher"]
    said = run([script, "train", *train, "--dry_run"], elsewhere, plain)
    assert "triangle" in said and not (elsewhere / "run").exists()
    run([python, "-m", "oneforcing_jax.main", *train], elsewhere, plain)
    run([script, "check", "run"], elsewhere, plain)
    run([script, "evaluate", "report", "run", "--out=run.html"], elsewhere, plain)
    (elsewhere / "mine.py").write_text(OWN)
    run([script, "train", "--config=mine.py", "--workdir=run2", "--dry_run"], elsewhere, plain)
    done = subprocess.run(
        [script, "serve", "--demo"], cwd=elsewhere, env=plain, capture_output=True, text=True
    )
    assert done.returncode == 1 and 'pip install "oneforcing_jax[serve]"' in done.stderr

    run([*pip, "install", *limits, f"{wheel}[serve]"], tmp_path, plain)
    serve = [script, "serve", "--demo", "--port=0"]
    with subprocess.Popen(
        serve, cwd=elsewhere, env=plain, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            address = next(line for line in server.stdout if line.startswith("http")).strip()
            with urllib.request.urlopen(address) as answer:
                assert 'id="prompt"' in answer.read().decode()
        finally:
            server.terminate()

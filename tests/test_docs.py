"""What the docs say one may type: its own parser takes every command, and what can run small does."""

import argparse
import ast
import functools
import importlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from oneforcing_jax import cli
from oneforcing_jax.setup import config, presets
from oneforcing_jax.system.command import Help

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A command of ours, as a page writes it.
OURS = re.compile(
    r"python3? (?:-m (oneforcing_jax[\w.]*)|(tools/\w+\.py))|\b(oneforcing (?:evaluate )?[a-z-]+)"
)
# What stands in for programs, where a block of commands is run to see what it calls: Python notes what it is
# given, and those that start commands start them. Bash itself knows loops, braces and quotes.
PYTHON = """#!/bin/bash
if [ "$1" = tests/servers.py ]; then shift 2; "$@"; exit; fi
{ printf '%s\\0' "$@"; printf '\\1\\0'; } >> "$CALLS"
"""
SCRIPT = """#!/bin/bash
{ printf '%s\\0' oneforcing "$@"; printf '\\1\\0'; } >> "$CALLS"
"""
LAUNCHER = 'while [[ "$1" == --* ]]; do shift; done; "$@"'
PROGRAMS = {
    "bin/python": PYTHON, "bin/python3": PYTHON, ".venv/bin/python": PYTHON, ".venv/bin/pip": "#!/bin/bash",
    "bin/oneforcing": SCRIPT, ".venv/bin/oneforcing": SCRIPT,
    ".venv/bin/activate": "", "bin/bash": '#!/bin/bash\nexec /bin/bash "$@"', "bin/sbatch": LAUNCHER,
    "bin/ssh": '/bin/bash -c "$2"', "tools/launch/again.sh": '"$@"',
    "tools/launch/slurm.sh": 'python -m oneforcing_jax.main "$@"',
    "tools/launch/tpu.sh": 'if [ "$1" = run ]; then /bin/bash -c "$2"; fi',
}  # fmt: skip


def blocks(page, kind):
    """The fenced blocks of a page."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def docstrings():
    """Commands in docstrings of modules, which stand apart there, by file."""
    for file in sorted(
        [*ROOT.glob("configs/*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("oneforcing_jax/**/*.py")]
    ):
        words = ast.get_docstring(ast.parse(file.read_text())) or ""
        for block in re.findall(r"(?:^    .*\n?)+", words, re.MULTILINE):
            if OURS.search(block):
                yield file, block


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    """A folder in which a block of commands does nothing but call what stands in for programs."""
    folder = tmp_path_factory.mktemp("sandbox")
    for name, text in PROGRAMS.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text if text.startswith("#!") else f"#!/bin/bash\n{text}\n")
        file.chmod(0o755)
    (folder / "oneforcing_jax").symlink_to(folder)
    (folder / "quiet").write_text("command_not_found_handle() { :; }\n")
    return folder


def calls(block, sandbox):
    """Arguments of every Python that a block of commands starts."""
    noted = sandbox / "calls"
    noted.write_text("")
    env = {"PATH": str(sandbox / "bin"), "BASH_ENV": str(sandbox / "quiet"), "CALLS": str(noted)}
    subprocess.run(
        ["/bin/bash", "-c", block], env=env, cwd=sandbox, stderr=subprocess.DEVNULL, check=False
    )
    return [call.split("\0")[:-1] for call in noted.read_text().split("\1\0")[:-1]]


def commands(block, sandbox):
    """(module or file, arguments) of every command of ours in a block; all that are written there are met."""
    found = []
    for words in calls(block, sandbox):
        count = (
            3 if words[:2] == ["oneforcing", "evaluate"] else 2 if words[0] == "oneforcing" else 1
        )
        name, rest = " ".join(words[:count]), words[count:]
        if name == "-m":
            name, *rest = rest
        if name.startswith(("oneforcing", "tools/")):
            found.append((name, rest))
    written = ["".join(names) for names in OURS.findall(re.sub(r"(^|\s)#.*", "", block))]
    assert not set(written) - {name for name, _ in found}, "a command was not reached"
    return found


class Found(Exception):
    """The parser of a command, and whether it takes what it does not know."""


@functools.cache
def parser_of(name):
    """The parser of a command, taken where the command is about to use it."""
    if name.startswith("tools/"):
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(ROOT / "tools"))  # tools import each other
            main = runpy.run_path(str(ROOT / name))["main"]
    elif name.startswith("oneforcing "):
        main = cli.find(name.removeprefix("oneforcing "))
    else:
        package = importlib.util.find_spec(name).submodule_search_locations
        main = importlib.import_module(f"{name}.__main__" if package else name).main
    with pytest.MonkeyPatch.context() as patch:
        for method in ("parse_args", "parse_known_args"):

            def found(parser, *_, method=method):
                raise Found(parser, method == "parse_known_args")

            patch.setattr(argparse.ArgumentParser, method, found)
        with pytest.raises(Found) as caught:
            main([])
    return caught.value.args


def check(name, words, capsys):
    """Lets a command's own parser read the words, and its config the fields that they change."""
    parser, open_ = parser_of(name)
    left_out = "..." in words  # what the page leaves out may be required
    words = [word for word in words if word != "..."]
    required = [
        action
        for action in (*parser._actions, *parser._mutually_exclusive_groups)
        if action.required
    ]
    with pytest.MonkeyPatch.context() as patch:
        for action in required if left_out else ():
            patch.setattr(action, "required", False)
        try:
            given, rest = parser.parse_known_args(words)
        except SystemExit:
            pytest.fail(f"{name} {words}: {capsys.readouterr().err}")
    bench = name in ("tools/bench.py", "oneforcing bench")
    if name == "tools/soak_live.py" or (bench and given.what == "serve"):
        check("oneforcing_jax.serve", rest, capsys)
        return
    assert open_ or not rest, (name, rest)
    file = str(getattr(given, "config", None) or "framewise")
    more = presets.overrides(given.preset) if getattr(given, "preset", None) else []
    config.load(ROOT / file if "/" in file else file, [*more, *rest])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_are_what_their_parsers_take(page, sandbox, capsys):
    for block in blocks(page, "bash"):
        for name, words in commands(block, sandbox):
            check(name, words, capsys)


def test_commands_of_docstrings_are_what_their_parsers_take(sandbox, capsys):
    seen = 0
    for _, block in docstrings():
        for name, words in commands(block, sandbox):
            check(name, words, capsys)
            seen += 1
    assert seen > 20


def test_an_option_that_is_not_there_fails(sandbox, capsys):
    for wrong in (
        "python tools/check.py --deep runs/toy",
        "for a in 1 2; do python -m oneforcing_jax.generate ... --stepz $a; done",
        "python -m oneforcing_jax.main --config=configs/toy.py",
        "ssh host 'cd oneforcing_jax && python -m oneforcing_jax.main ... --config.sed={1,2}'",
        "python -m oneforcing_jax.main ... --preset=h1000",
        "oneforcing evaluate report runs/toy --outt=toy.html",
    ):
        ((name, words), *_) = commands(wrong, sandbox)
        with pytest.raises((pytest.fail.Exception, AssertionError, ValueError)):
            check(name, words, capsys)


def options(parser):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from options(verb)
        else:
            yield parser, action


TOOLS = (file for file in sorted(ROOT.glob("tools/*.py")) if "ArgumentParser(" in file.read_text())
COMMANDS = [
    *(f"tools/{file.name}" for file in TOOLS),
    *(f"oneforcing {verb}" for verb in cli.VERBS),
    "oneforcing_jax.toy.encoders",
]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_options_are_and_their_defaults(name):
    for parser, action in options(parser_of(name)[0]):
        assert action.help and issubclass(parser.formatter_class, Help), (parser.prog, action.dest)
    parser_of(name)[0].format_help()


def test_help_of_the_main_command_says_how_fields_are_changed():
    said = parser_of("oneforcing_jax.main")[0].format_help()
    assert "[--config.FIELD=VALUE ...]" in said and "configs/base.py lists all fields" in said


def test_a_default_is_said_once():
    parser = argparse.ArgumentParser(formatter_class=Help)
    parser.add_argument("--a", default=0, help="of 100%% things")
    parser.add_argument("--b", default=(1.5, 2), help="levels")
    parser.add_argument("--c", default="5%", help="share")
    parser.add_argument("--d", default=4, help="default: as the others")
    parser.add_argument("--e", action="store_true", help="a switch")
    said = [line.rpartition("  ")[2].strip() for line in parser.format_help().splitlines()[-5:]]
    assert said[:2] == ["of 100% things; default 0", "levels; default 1.5,2"]
    assert said[2:] == ["share; default 5%", "default: as the others", "a switch"]


def test_configs_and_docs_name_networks_that_the_converter_writes():
    """Of a folder of Wan's the transformer, which is `model`; of a file of One-Forcing its generator."""
    texts = [page.read_text() for page in (*PAGES, *sorted((ROOT / "configs").glob("*.py")))]
    named = re.findall(r"((?:/path/to|weights)/[\w./]+):(\w+)", "\n".join(texts))
    assert len(named) > 8
    for folder, net in named:
        assert net == ("model" if folder.endswith("/transformer") else "generator"), folder


def test_docs_install_from_the_folder_that_one_is_in():
    """No index has the package."""
    for page in PAGES:
        for block in blocks(page, "bash"):
            assert not re.search(r"pip install [^\n&]*oneforcing_jax", block), page


# One small run, and what the docs do with it.

SMALL = (
    "stages.world.count=48 stages.world.codec_videos=32 stages.world.judge_iterations=20 "
    "stages.exam.least.colour=0.0 stages.exam.least.shape=0.0 stages.exam.least.direction=0.0 "
    "stages.teacher.iterations=2 stages.teacher_forcing.iterations=2 stages.ode.iterations=2 "
    "stages.one_forcing.iterations=4 stages.one_forcing.samples.every=2 stages.ode_pairs.count=16 "
    "stages.report.videos=2 evaluation.samples=8"
)
TOY = "-m oneforcing_jax.main --config=configs/toy.py --workdir=runs/toy"
# Commands of the docs as they begin, and what makes them small: the last of several values counts.
RUN = {
    f"{TOY} ": [f"--config.{field}" for field in SMALL.split()],
    "-m oneforcing_jax.generate --checkpoint runs/toy/": [],
    "-m oneforcing_jax.evaluation.report runs/toy ": [],
    "-m oneforcing_jax.evaluation.measures videos ": [],
    "-m oneforcing_jax.evaluation.provenance cat.mp4": [],
    "tools/curvature.py --checkpoint=runs/toy/teacher ": ["--clips=2", "--sampling_steps=16"],
    "tools/bench.py train --config=configs/toy.py": ["--repeats=1"],
}  # fmt: skip


def run(words, folder, environment):
    if words[0] == "oneforcing":
        words = ["-m", "oneforcing_jax.cli", *words[1:]]
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (words, done.stderr[-2000:])


@pytest.mark.long
def test_what_the_docs_do_with_a_small_run(sandbox, tmp_path, light_environment):
    """Commands and Python of README and docs, pasted in their order; the first one is the run."""
    for name in ("configs", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    ran = []
    pasted = (block for page in PAGES for block in blocks(page, "bash"))
    for line in (shlex.join(words) for block in pasted for words in calls(block, sandbox)):
        small = [more for start, more in RUN.items() if f"{line} ".startswith(start)]
        if not small or line in ran or "--watch" in line:
            continue
        run([*shlex.split(line), *small[0]], tmp_path, light_environment)
        if not ran:  # videos that other commands are about
            shutil.copytree(tmp_path / "runs/toy/report/videos", tmp_path / "videos")
            shutil.copy(next((tmp_path / "videos").glob("*.mp4")), tmp_path / "cat.mp4")
        ran.append(line)
    left = [start for start in RUN if not any(f"{line} ".startswith(start) for line in ran)]
    assert not left and ran[0] == TOY
    for name in ("toy.mp4", "toy.html", "measures.json", "teacher.json"):
        assert (tmp_path / name).is_file(), name
    pasted = [block for page in PAGES for block in blocks(page, "python")]
    for number, block in enumerate(pasted):
        (tmp_path / f"{number}.py").write_text(block)
        run([f"{number}.py"], tmp_path, light_environment)
    assert pasted

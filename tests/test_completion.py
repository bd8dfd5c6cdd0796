"""Completion of verbs, options and values, in shells that somebody types into."""

import os
import pty
import re
import shutil
import subprocess

import pytest

from oneforcing_jax import cli
from oneforcing_jax.commands import completion

# In place of the command: it says what it is given.
ECHO = """oneforcing() { printf 'GOT<%s>\\n' "$*"; }"""
SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
}
# What is typed before a tab, and what the line is after it.
TYPED = {
    "trai": "train",
    "evaluate vb": "evaluate vbench",
    "evaluate vbench mak": "evaluate vbench make",
    "generate --rewritten_p": "generate --rewritten_prompts",
    "train --config fram": "train --config framewise",
    "train --config=fram": "train --config=framewise",
    "train --config=toy --preset=h100x8-v": "train --config=toy --preset=h100x8-video",
    "plan encode --con": "plan encode --config",
    "bench vae --dtype=bfl": "bench vae --dtype=bfloat16",
    "check fold": "check folder",
    "encode --videos fold": "encode --videos folder",
    "encode --videos=fold": "encode --videos=folder",
    "info --pro": "info --pro",
}


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    (folder / "folder").mkdir()
    (folder / "script").write_text(f"{completion.script()}\n{ECHO}\n")
    return folder / "script"


def typed(shell, script, lines):
    """What the command is given when lines are typed, each with a tab at its end."""
    keys = "".join(f"oneforcing {line}\t\n" for line in lines)
    screen, inside = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(script.parent)}
    process = subprocess.Popen(
        SHELLS[shell], stdin=inside, stdout=inside, stderr=inside, cwd=script.parent,
        env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(inside)
    said = b""
    os.write(screen, f". {script}; echo READ''Y\n".encode())
    while b"READY" not in said:
        said += os.read(screen, 1 << 16)
    os.write(screen, f"{keys}exit\n".encode())
    try:
        while part := os.read(screen, 1 << 16):
            said += part
    except OSError:  # the shell has ended
        pass
    finally:
        os.close(screen)
        process.wait()
    return [found.strip().rstrip("/") for found in re.findall(r"GOT<(.*)>", said.decode())]


@pytest.mark.long
@pytest.mark.parametrize("shell", SHELLS)
def test_a_tab_completes_what_is_typed(shell, script):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not here")
    assert typed(shell, script, TYPED) == list(TYPED.values())


@pytest.mark.long
def test_every_verb_and_option_is_known(script):
    text = script.read_text()
    for verb in cli.VERBS:
        assert f"' {verb}'" in text, verb
    assert "h100x8" in text and "--trust_parts" in text and "unipc" in text


def test_a_parser_is_what_it_was_afterwards(capsys):
    assert completion.parser_of("info").prog == "oneforcing info"
    with pytest.raises(SystemExit):
        cli.main(["info", "--help"])
    assert "usage: oneforcing info" in capsys.readouterr().out

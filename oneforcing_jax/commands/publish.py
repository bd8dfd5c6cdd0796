"""Uploads a packed student to the Hugging Face hub, and loads it back.

    oneforcing export --checkpoint runs/framewise/one_forcing --ema --layout student --out student
    oneforcing publish student --to OWNER/NAME --dry_run
    oneforcing publish student --to OWNER/NAME

Before anything is sent, all files are compared with their checksums, the student is found as
`Pipeline.from_pretrained` finds it, and its card (README.md) must be complete. With --dry_run that is all.
Afterwards the repository is downloaded at the new commit and compared. `hf auth login` says once who you are.
Extra: torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from oneforcing_jax.commands import check
from oneforcing_jax.convert import card
from oneforcing_jax.errors import InputError
from oneforcing_jax.generation import pretrained
from oneforcing_jax.system import hub, places
from oneforcing_jax.system.command import Help, any_path, ending


def publish(folder: Path, to: str, files: Iterable[str], private: bool = False) -> str:
    """Uploads files of a folder that `ready` found whole; the name of what is there now, OWNER/NAME@COMMIT.

    Raises:
      InputError: the hub refuses it, or what comes back is another student.
    """
    commit = hub.upload(folder, to, private, list(files))
    name = f"{to}@{commit}"
    back = hub.download(name, to, commit, None)
    if pretrained.find(back).identity != pretrained.find(folder).identity:
        raise InputError(
            f"{name}: expected the weights of {folder}, found others; publish it again"
        )
    return name


def ready(folder: Path) -> dict[str, int]:
    """The files of a folder that may be published, and their bytes.

    Raises:
      MissingInput, InputError: damage; no causal student with its encoders; a card that lacks something.
    """
    damaged = [found for found in check.look(folder) if found.verdict != "whole"]
    if damaged:
        why = "; ".join([*damaged[0].wrong, damaged[0].unknown][:2])
        raise InputError(f"{damaged[0].folder}: expected what is whole, found {why}; pack it again")
    source = pretrained.find(folder)
    source.check(teacher=False)
    if source.folder.parent != folder and source.folder != folder:
        raise InputError(
            f"{folder}: expected a packed student, found a run; export it with --layout student"
        )
    pretrained.find_encoders(folder)
    page = folder / card.README
    lacks = card.wrong(page.read_text(encoding="utf-8")) if page.is_file() else ["all of it"]
    if lacks:
        more = f" and {len(lacks) - 3} more" if len(lacks) > 3 else ""
        raise InputError(
            f"{page}: expected a card that says what these weights are, found that it lacks "
            f"{'; '.join(lacks[:3])}{more}; fill it in (docs/model_card.md)"
        )
    return places.sizes(folder)


def main(arguments: Sequence[str] | None = None, prog: str = "oneforcing publish") -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=Help)
    parser.add_argument("folder", type=any_path, help="of a packed student")
    parser.add_argument(
        "--to", required=True, help="OWNER/NAME of the repository, made if it is not there"
    )
    parser.add_argument(
        "--private", action="store_true", help="a new repository is for its owner alone"
    )
    parser.add_argument("--dry_run", action="store_true", help="look at all, and send nothing")
    given = parser.parse_args(arguments)
    with ending("nothing was published"):
        named = hub.REPOSITORY.fullmatch(given.to)
        if not named or named[2] or named[3]:
            raise InputError(f"--to: expected OWNER/NAME, found {given.to!r}; name a repository")
        files = ready(given.folder)
        size = sum(files.values()) / 1e6
        print(f"{given.folder}: whole, {len(files)} files of {size:,.1f} MB", flush=True)
        if given.dry_run:
            for name, bytes_ in sorted(files.items()):
                print(f"{bytes_:>14,}  {name}")
            return
        print(f"published as {publish(given.folder, given.to, files, given.private)}")

"""The command `oneforcing`: verbs, and the module whose `main` each of them is.

    oneforcing train --config=toy --workdir=runs/toy
    oneforcing generate --checkpoint runs/toy/one_forcing --prompt "a circle moving left" --out toy.mp4
    oneforcing info

A module is imported when its verb is asked for, so that help and mistakes take no time.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Verb(NamedTuple):
    """What a verb runs, `main(arguments, prog)` of a module of this package, and what it does, in words."""

    module: str
    words: str


VERBS = {
    "train": Verb("main", "runs the stages of a config"),
    "generate": Verb("generate", "makes videos from prompts"),
    "serve": Verb("serve", "serves a page in which a prompt becomes a video"),
    "plan": Verb("commands.plan", "says what work costs on a device that need not be there"),
    "convert": Verb("commands.convert", "reads published weights of PyTorch"),
    "verify": Verb("commands.verify", "compares converted weights with the published ones"),
    "export": Verb("commands.export", "writes weights for PyTorch"),
    "publish": Verb("commands.publish", "uploads a student to the Hugging Face hub"),
    "import-lora": Verb("commands.import_lora", "merges files of adapters into weights"),
    "export-lora": Verb("commands.export_lora", "writes adapters for others"),
    "encode": Verb("commands.encode", "makes training data of captioned videos"),
    "import": Verb("commands.import_lmdb", "makes training data of the original's LMDB"),
    "evaluate curvature": Verb("commands.curvature", "measures where trajectories bend"),
    "evaluate figures": Verb("evaluation.figures", "draws the paper's figures of one's own runs"),
    "evaluate measures": Verb("evaluation.measures", "measures videos without any network"),
    "evaluate precision": Verb("commands.precision", "says what eight bits cost, block by block"),
    "evaluate provenance": Verb("evaluation.provenance", "says where videos come from"),
    "evaluate raters": Verb("evaluation.raters.__main__", "lets people compare clips"),
    "evaluate report": Verb("evaluation.report.__main__", "writes one page about runs and studies"),
    "evaluate rewrite": Verb("evaluation.rewrite", "makes short prompts long by a chat model"),
    "evaluate study": Verb("commands.study", "compares methods over seeds on the toy"),
    "evaluate vbench": Verb("evaluation.vbench.__main__", "makes, checks and scores VBench's videos"),
    "bench": Verb("commands.bench", "times what the devices at hand do"),
    "check": Verb("commands.check", "says what of a folder is whole and what is damaged"),
    "completion": Verb("commands.completion", "prints what lets bash and zsh complete these words"),
    "info": Verb("commands.info", "says which versions, devices and extras are here"),
}  # fmt: skip
_HELP = ("-h", "--help")


def find(name: str) -> Callable[..., None]:
    """The `main(arguments, prog)` of a verb."""
    found: Callable[..., None] = importlib.import_module(f"{__package__}.{VERBS[name].module}").main
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for length in (1, 2):
        if (name := " ".join(given[:length])) in VERBS:
            find(name)(given[length:], f"oneforcing {name}")
            return
    group = given[0] if given and any(verb.startswith(f"{given[0]} ") for verb in VERBS) else ""
    rest = given[1:] if group else given
    if rest and rest[0] not in _HELP:
        known = dict.fromkeys(verb.removeprefix(group).split()[0] for verb in _under(group))
        sys.exit(
            f"error: expected a verb among {', '.join(known)}, found {rest[0]!r}; "
            f"see {' '.join(['oneforcing', group]).strip()} --help"
        )
    print(usage(group))


def _under(group: str) -> list[str]:
    """The verbs of a group; of "" all."""
    return [verb for verb in VERBS if verb.startswith(f"{group} " if group else "")]


def usage(group: str = "") -> str:
    """The help of the command, or of a group of its verbs."""
    names = _under(group)
    width = max(map(len, names))
    lines = [f"  {name:<{width}}  {VERBS[name].words}" for name in names]
    said = " ".join(["oneforcing", group, "VERB"] if group else ["oneforcing", "VERB"])
    return "\n".join([
        f"usage: {said} ...\n", "One-step causal video generation. Verbs:\n", *lines,
        f"\n{said} --help says what a verb takes.",
    ])  # fmt: skip


if __name__ == "__main__":
    main()

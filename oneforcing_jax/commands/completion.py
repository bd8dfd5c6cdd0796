"""Prints what lets bash and zsh complete verbs, options, and values that are a choice.

    oneforcing completion > ~/.oneforcing_completion
    echo ". ~/.oneforcing_completion" >> ~/.bashrc       # or ~/.zshrc

It asks the parser of every verb once, which takes seconds, and the shell then starts no Python. Print it
again after an update of the package.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from oneforcing_jax import cli
from oneforcing_jax.setup import presets
from oneforcing_jax.setup.config import ours
from oneforcing_jax.system.command import Help, ending

# What is a choice but takes other words, too, and so is none of its parser.
NAMED = {"--config": lambda: list(ours()), "--preset": lambda: list(presets.PRESETS)}
# `_oneforcing_words` says what may follow verbs, `_oneforcing_values` what an option of theirs takes:
# words, or "/" for files, or nothing where it is a switch. Bash parts --option=value at the sign, and zsh
# does not.
SCRIPT = r"""# Completion of `oneforcing` in bash and zsh; `oneforcing completion` made it.
_oneforcing_words() {
  case "$1" in
%(words)s
  esac
}
_oneforcing_values() {
  case "$1" in
%(values)s
  esac
}
_oneforcing() {
  local word="${COMP_WORDS[COMP_CWORD]}" option="${COMP_WORDS[COMP_CWORD-1]}" at="" before=""
  local i values words file
  for ((i = 1; i < COMP_CWORD; i++)); do
    [ -n "$(_oneforcing_words "$at ${COMP_WORDS[i]}")" ] && at="$at ${COMP_WORDS[i]}"
  done
  case "$word" in
    =) word="" ;;
    --*=*) option="${word%%%%=*}" before="${word%%%%=*}=" word="${word#*=}" ;;
    *) [ "$option" = "=" ] && option="${COMP_WORDS[COMP_CWORD-2]}" ;;
  esac
  values="$(_oneforcing_values "$at $option")"
  COMPREPLY=()
  case "$values" in
    /) [ -z "$before" ] || for file in "$word"*; do
        [ -e "$file" ] && COMPREPLY+=("$before$file")
      done ;;
    "")
      words=" $(_oneforcing_words "$at")"
      [[ "$word" == -* ]] || words="${words%%%% -*}"  # verbs; files, where there are none
      COMPREPLY=($(compgen -W "$words" -- "$word"))
      ;;
    *) COMPREPLY=($(compgen -P "$before" -W "$values" -- "$word")) ;;
  esac
}
if [ -n "$ZSH_VERSION" ]; then
  autoload -U +X compinit bashcompinit && compinit -u && bashcompinit
fi
complete -o default -F _oneforcing oneforcing"""


class _Caught(Exception):
    """The parser of a command that was about to read its words."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


class Node(NamedTuple):
    """What may follow some verbs: words, and the values of each option that takes any."""

    verbs: str
    words: list[str]
    values: dict[str, list[str]]


def main(arguments: Sequence[str] | None = None, prog: str = "oneforcing completion") -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=Help)
    parser.parse_args(arguments)
    with ending("nothing is half written"):
        print(script())


def script() -> str:
    """The functions of the shell, for all verbs."""
    groups = {verb.partition(" ")[0] for verb in cli.VERBS if " " in verb}
    found = [Node("", list(dict.fromkeys(verb.split()[0] for verb in cli.VERBS)), {})]
    for group in sorted(groups):
        verbs = [verb.split()[1] for verb in cli.VERBS if verb.startswith(f"{group} ")]
        found.append(Node(group, verbs, {}))
    for verb in cli.VERBS:
        found += nodes(verb, parser_of(verb))
    words: dict[str, list[str]] = {}
    values: dict[str, list[str]] = {}
    for node in found:
        at = f" {node.verbs}" if node.verbs else ""
        words[at] = sorted(node.words, key=lambda word: word.startswith("-"))  # verbs first
        values |= {f"{at} {option}": given for option, given in node.values.items()}
    return SCRIPT % {"words": _cases(words), "values": _cases(values)}


def _cases(answers: Mapping[str, Sequence[str]]) -> str:
    """Lines of a `case`: those that have the same answer are one."""
    asked: dict[str, list[str]] = {}
    for question, answer in answers.items():
        asked.setdefault(" ".join(answer), []).append(shlex.quote(question))
    return "\n".join(f'    {"|".join(all_)}) echo "{answer}" ;;' for answer, all_ in asked.items())


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The parser of a verb, taken where its command is about to use it."""
    own = argparse.ArgumentParser.parse_known_args

    def caught(parser: argparse.ArgumentParser, *_: object) -> None:
        raise _Caught(parser)

    argparse.ArgumentParser.parse_known_args = caught  # type: ignore[assignment,method-assign]
    try:
        cli.find(verb)([], f"oneforcing {verb}")
    except _Caught as found:
        return found.parser
    finally:
        argparse.ArgumentParser.parse_known_args = own  # type: ignore[method-assign]
    raise AssertionError(f"{verb} reads no command line")


def nodes(verbs: str, parser: argparse.ArgumentParser) -> Iterator[Node]:
    """A verb, and the ones that its parser knows."""
    words: list[str] = []
    values: dict[str, list[str]] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            words += action.choices
            for name, below in action.choices.items():
                yield from nodes(f"{verbs} {name}", below)
            continue
        words += action.option_strings or map(str, action.choices or ())
        if action.option_strings and action.nargs != 0:
            known = NAMED.get(action.option_strings[-1], list)()
            given = [str(choice) for choice in action.choices or known] or ["/"]
            values |= dict.fromkeys(action.option_strings, given)
    yield Node(verbs, words, values)

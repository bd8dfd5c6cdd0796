"""The reference of the command `oneforcing`: every verb and its options, from the parsers themselves."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from oneforcing_jax import cli
from oneforcing_jax.commands.completion import parser_of

# What Markdown would read as its own; and code, and names of files, which are shown as such.
_OWN = re.compile(r"([\\`*_<>\[\]|{}])")
_CODE = re.compile(r"`([^`]+)`|\b((?:docs|configs|tools|tests)/[\w/]+(?:\.\w+)?)")


def text() -> str:
    """All verbs, in Markdown."""
    return "\n\n".join(part for verb in cli.VERBS for part in _command(parser_of(verb), 2))


def plain(words: str) -> str:
    """Words that Markdown leaves as they are, but for code and names of files."""
    parts, last = [], 0
    for code in _CODE.finditer(words):
        parts += [_OWN.sub(r"\\\1", words[last : code.start()]), f"`{code[1] or code[2]}`"]
        last = code.end()
    return "".join([*parts, _OWN.sub(r"\\\1", words[last:])])


def _command(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    """A command, and those below it."""
    yield f"{'#' * level} {parser.prog}"
    for words in filter(None, (parser.description, parser.epilog)):
        said = words.replace("%(prog)s", parser.prog)
        yield "\n".join(x if x.startswith("    ") else plain(x) for x in said.splitlines())
    usage = parser.format_usage().removeprefix("usage: ").rstrip()
    yield f"```text\n{usage}\n```"
    yield f"```{{program}} {parser.prog}\n```"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _command(below, level + 1)
        elif not isinstance(action, argparse._HelpAction):
            yield _option(parser, action)


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """An option or an argument, with what its help says."""
    formatter = parser._get_formatter()
    name = formatter._format_action_invocation(action)
    help_ = formatter._expand_help(action)
    if action.choices and action.metavar:  # otherwise its name shows them
        help_ += f"; one of {', '.join(map(str, action.choices))}"
    if action.required and action.option_strings:
        help_ += "; required"
    return f"````{{option}} {name}\n{plain(help_)}\n````"

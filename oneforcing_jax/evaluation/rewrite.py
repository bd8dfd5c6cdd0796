"""Rewrites short prompts into long ones by a chat model, as videos of VBench are made from.

    python -m oneforcing_jax.evaluation.rewrite --prompts prompts.txt --out rewritten.txt \\
        --model Qwen/Qwen2.5-7B-Instruct
    python -m oneforcing_jax.evaluation.rewrite --prompts prompts.txt --out rewritten.txt \\
        --model my-model --url http://localhost:8000/v1

OUT has a line for each prompt. Answers are kept in OUT.cache.jsonl as they come, so that no prompt is asked
twice, and the same command continues an interrupted one. docs/vbench.md says more.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from oneforcing_jax.errors import InputError
from oneforcing_jax.evaluation.chat import (
    WAN_NAME,
    Chat,
    Pinned,
    Settings,
    instruction_of,
    local,
    served,
)
from oneforcing_jax.generation.jobs import read_prompts
from oneforcing_jax.setup.ranges import options
from oneforcing_jax.system import bounded, textfiles
from oneforcing_jax.system.command import Help, any_path, ending
from oneforcing_jax.system.files import write_whole


class Cache:
    """Answers by prompt, in a file to which each batch is added; a line that a kill has cut is asked again.

    Args:
      path: JSON lines of any settings.
      key: of the settings whose answers count.

    Attributes:
      answers: by prompt.
      model: where a repository was downloaded, the commit that they are of.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key, self.model = path, key, Pinned()
        # A kill can cut a character in two.
        content = path.read_bytes().decode(errors="replace") if path.is_file() else ""
        self._cut = bool(content) and not content.endswith("\n")
        self.answers: dict[str, str] = {}
        for line in textfiles.lines(content):
            try:
                row = bounded.line(line)
                if row["key"] == key:
                    self.answers[str(row["prompt"])] = str(row["answer"])
                    self.model.commit = row.get("commit", self.model.commit)
            except (ValueError, LookupError, TypeError):
                continue

    def add(self, answers: Mapping[str, str]) -> None:
        """Keeps answers.

        Raises:
          InputError: the file cannot be written.
        """
        more = {"commit": self.model.commit} if self.model.commit else {}
        rows = [{"key": self._key, "prompt": p, "answer": a, **more} for p, a in answers.items()]
        text = "\n" * self._cut + "".join(f"{json.dumps(row)}\n" for row in rows)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}") from None
        self._cut = False
        self.answers.update(answers)


def rewrite(prompts: Sequence[str], chat: Chat, cache: Cache, batch: int) -> list[str]:
    """An answer for each prompt, in one line; an empty one is the prompt itself.

    Equal prompts are asked once. Batches are those of the whole list, whatever the cache holds, so that an
    interrupted command and a whole one ask the same.
    """
    different = list(dict.fromkeys(prompts))
    batches = [different[i : i + batch] for i in range(0, len(different), batch)]
    known = sum(prompt in cache.answers for prompt in different)
    with tqdm(total=len(different), initial=known, unit="prompt", disable=None) as bar:
        for group in batches:
            if new := [prompt for prompt in group if prompt not in cache.answers]:
                answers = dict(zip(group, chat(group), strict=True))
                cache.add({prompt: _line(answers[prompt]) for prompt in new})
                bar.update(len(new))
    return [cache.answers[prompt] or prompt for prompt in prompts]


def _line(answer: str) -> str:
    """In one line, and such that a file can hold it."""
    return " ".join(answer.encode(errors="replace").decode().split())


def main(
    arguments: Sequence[str] | None = None, prog: str = "oneforcing_jax.evaluation.rewrite"
) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=Help,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--prompts", required=True, type=any_path, help="a prompt a line")
    add("--out", required=True, type=any_path, help="text file, a rewritten prompt a line")
    add(
        "--model",
        required=True,
        help="folder or repository (OWNER/NAME[@REVISION]) for transformers; with --url its name",
    )
    add("--url", help="of a server that speaks OpenAI's protocol, such as http://localhost:8000/v1")
    add("--instruction", type=any_path, help=f"text file, or a .py of Wan's with {WAN_NAME}")
    add("--seed", type=int, default=42, help="of the sampling")
    add("--tokens", type=int, default=512, help="of an answer at most")
    add("--batch", type=int, default=1, help="prompts asked at once")
    args = parser.parse_args(arguments)
    with ending("the same command continues after the answers that came"):
        run(args)


def run(args: argparse.Namespace) -> None:
    """Rewrites what is not yet rewritten, then writes the file."""
    settings = options(Settings, vars(args))
    prompts = [prompt.words for prompt in read_prompts(args.prompts)]
    instruction = instruction_of(args.instruction)
    cache = Cache(args.out.with_name(f"{args.out.name}.cache.jsonl"), settings.key(instruction))
    loaded: list[Chat] = []

    def chat(group: Sequence[str]) -> list[str]:
        if not loaded:  # nothing is loaded where all answers are known
            asked = (settings, instruction)
            loaded.append(served(*asked) if settings.url else local(*asked, cache.model))
        return loaded[0](group)

    lines = rewrite(prompts, chat, cache, settings.batch)
    write_whole(args.out, "".join(f"{line}\n" for line in lines).encode())
    kept = sum(not cache.answers[prompt] for prompt in prompts)
    print(f"{len(lines)} prompts in {args.out}" + (f", {kept} unchanged: no answer" * bool(kept)))


if __name__ == "__main__":
    main()

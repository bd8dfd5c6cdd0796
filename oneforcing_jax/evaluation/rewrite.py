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
import ast
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from oneforcing_jax.command import any_path, ending
from oneforcing_jax.errors import InputError, MissingInput, MissingPackage
from oneforcing_jax.files import write_whole
from oneforcing_jax.generation.jobs import read_prompts
from oneforcing_jax.ranges import Amount, Count, Seed, options

# What Wan's instruction asks for, in our words.
INSTRUCTION = """\
The user's message describes a video in a few words. Write the description from which that video can be made.
- Keep what it says. Add what it leaves open and a viewer would see: how the subjects look, how many there are, \
where they stand, the place, the light, the style of the picture and the size of the shot. Where a style is \
named, keep it; otherwise choose the one that suits.
- Say what moves and how, in plain verbs: a natural motion of each subject, and the camera's, as the message has it.
- Text in quotes and names of works stay as they are.
- One paragraph in English of 80 to 100 words, nothing before or after it, and no quotation marks around it.
- A message that reads like a question or an order is a description, too: rewrite it, do not answer it."""
# The name that Wan's code gives its English instruction.
WAN_NAME = "LM_EN_SYS_PROMPT"
# What a server may recover from, and how long it is given.
RETRIED, PAUSES, TIMEOUT = (408, 429, 500, 502, 503, 504), (1, 4), 300

Chat = Callable[[Sequence[str]], list[str]]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The options that answers depend on; `--help` explains them."""

    model: str
    url: str | None
    seed: Seed
    tokens: Count
    batch: Amount

    def key(self, instruction: str) -> str:
        """Of answers in the cache."""
        parts = [self.model, self.seed, self.tokens, instruction]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def instruction_of(file: Path | None) -> str:
    """What the chat model is told.

    Args:
      file: text; or a .py file of Wan's code, whose English instruction is taken; None: ours.

    Raises:
      MissingInput, InputError: no such file, or none in it.
    """
    if file is None:
        return INSTRUCTION
    if not file.is_file():
        raise MissingInput(f"--instruction: expected a file, found nothing at {file}")
    try:
        text = file.read_text(encoding="utf-8")
        found = text.strip() if file.suffix != ".py" else _assigned(text)
    except (SyntaxError, ValueError):
        found = ""
    if not found:
        raise InputError(
            f"{file}: expected text in UTF-8, or Python with a string {WAN_NAME}, found none"
        )
    return found


def _assigned(source: str) -> str:
    """The string that Python code assigns to Wan's name; the code is not run."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == WAN_NAME for target in node.targets
        ):
            return str(ast.literal_eval(node.value))
    return ""


def local(settings: Settings, instruction: str) -> Chat:
    """A model of the transformers library, on a GPU of PyTorch's where there is one.

    It samples as its own generation config says, with the seed set before each batch.

    Raises:
      MissingPackage: torch or transformers is not installed.
      InputError: no such model, or one that is no chat model.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingPackage(
            f'a local chat model needs the package {error.name}: pip install "oneforcing_jax[torch,wan]"'
        ) from error
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(settings.model, padding_side="left")
        model: Any = AutoModelForCausalLM.from_pretrained(settings.model, dtype="auto")
    except (OSError, ValueError) as error:
        raise InputError(
            f"--model: expected a folder or a repository of a chat model, found {settings.model!r}: "
            f"{str(error).splitlines()[0][:200]}"
        ) from None
    if not tokenizer.chat_template:
        raise InputError(
            f"--model: expected a chat model, found no chat template in {settings.model}"
        )
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def chat(prompts: Sequence[str]) -> list[str]:
        torch.manual_seed(settings.seed)
        texts = [
            tokenizer.apply_chat_template(
                _messages(instruction, prompt), tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts
        ]
        given = tokenizer(texts, return_tensors="pt", padding=True).to(model.device)
        with torch.inference_mode():
            made = model.generate(
                **given, max_new_tokens=settings.tokens, pad_token_id=tokenizer.pad_token_id
            )
        answers = made[:, given["input_ids"].shape[1] :]
        return list(tokenizer.batch_decode(answers, skip_special_tokens=True))

    return chat


def served(settings: Settings, instruction: str) -> Chat:
    """A model behind a URL that speaks OpenAI's protocol. A batch is asked at once.

    The key, if the server wants one, is read from the environment variable OPENAI_API_KEY.

    Raises:
      InputError: another kind of URL.
    """
    url = f"{settings.url}".rstrip("/") + "/chat/completions"
    if not url.startswith(("http://", "https://")):
        raise InputError(f"--url: expected http://... or https://..., found {settings.url!r}")
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"

    def ask(prompt: str) -> str:
        body = {
            "model": settings.model, "messages": _messages(instruction, prompt),
            "seed": settings.seed, "max_tokens": settings.tokens,
        }  # fmt: skip
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        content = _fetch(request)
        try:
            answer = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            answer = None
        if not isinstance(answer, str):
            raise InputError(f"{url}: expected an answer with choices, found {content[:100]!r}")
        return answer

    def chat(prompts: Sequence[str]) -> list[str]:
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(ask, prompts))

    return chat


def _fetch(request: urllib.request.Request) -> bytes:
    for pause in (*PAUSES, None):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            reason, final = f"{error.code} {error.reason}", error.code not in RETRIED
        except OSError as error:
            reason, final = str(getattr(error, "reason", error)), False
        if final or pause is None:
            break
        time.sleep(pause)
    raise InputError(f"{request.full_url}: expected an answer, found {reason}; see its log")


def _messages(instruction: str, prompt: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": instruction}, {"role": "user", "content": prompt}]


class Cache:
    """Answers by prompt, in a file to which each batch is added; a line that a kill has cut is asked again.

    Args:
      path: JSON lines of any settings.
      key: of the settings whose answers count.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key
        content = path.read_bytes() if path.is_file() else b""
        self._cut = bool(content) and not content.endswith(b"\n")
        self.answers: dict[str, str] = {}
        for line in content.splitlines():
            try:
                row = json.loads(line)
                if row["key"] == key:
                    self.answers[str(row["prompt"])] = str(row["answer"])
            except (ValueError, LookupError, TypeError):
                continue

    def add(self, answers: Mapping[str, str]) -> None:
        """Keeps answers.

        Raises:
          InputError: the file cannot be written.
        """
        rows = [{"key": self._key, "prompt": p, "answer": a} for p, a in answers.items()]
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
                cache.add({prompt: " ".join(answers[prompt].split()) for prompt in new})
                bar.update(len(new))
    return [cache.answers[prompt] or prompt for prompt in prompts]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="oneforcing_jax.evaluation.rewrite",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--prompts", required=True, type=any_path, help="a prompt a line")
    add("--out", required=True, type=any_path, help="text file, a rewritten prompt a line")
    add("--model", required=True, help="folder or repository for transformers; with --url its name")
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
            loaded.append((served if settings.url else local)(settings, instruction))
        return loaded[0](group)

    lines = rewrite(prompts, chat, cache, settings.batch)
    write_whole(args.out, "".join(f"{line}\n" for line in lines).encode())
    kept = sum(not cache.answers[prompt] for prompt in prompts)
    print(f"{len(lines)} prompts in {args.out}" + (f", {kept} unchanged: no answer" * bool(kept)))


if __name__ == "__main__":
    main()

"""Chat models that rewrite prompts, local or behind a URL, and what they are told."""

from __future__ import annotations

import ast
import concurrent.futures
import dataclasses
import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from oneforcing_jax.errors import InputError, MissingInput, MissingPackage
from oneforcing_jax.setup.ranges import Amount, Count, Seed
from oneforcing_jax.system import textfiles

# What Wan's instruction asks for, in our words.
INSTRUCTION = """\
The user's message describes a video in a few words. Write the description from which that video can be made.
- Keep what it says. Add what it leaves open and a viewer would see: how the subjects look, how many there
are, where they stand, the place, the light, the style of the picture and the size of the shot. Where a style
is named, keep it; otherwise choose the one that suits.
- Say what moves and how, in plain verbs: a natural motion of each subject, and the camera's, if the message
has one.
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
    """The options that answers depend on; `oneforcing_jax.evaluation.rewrite --help` explains them."""

    model: str
    url: str | None
    seed: Seed
    tokens: Count
    batch: Amount

    def key(self, instruction: str) -> str:
        """The name of an answer in the cache."""
        parts = [self.model, self.seed, self.tokens, instruction]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclasses.dataclass
class Pinned:
    """The commit of a model's repository, of which all answers of a file are to be; None: not known yet."""

    commit: str | None = None


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
    text = textfiles.read(file)
    try:
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


def local(settings: Settings, instruction: str, pinned: Pinned | None = None) -> Chat:
    """A model of the transformers library, on a GPU of PyTorch's where there is one.

    It samples as its own generation config says, with the seed set before each batch. Of a repository the
    commit is taken that is pinned, or that OWNER/NAME@REVISION names, and is pinned then.

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
    pinned = pinned or Pinned()
    on_disk = Path(settings.model).exists()
    name, _, revision = (settings.model, "", "") if on_disk else settings.model.partition("@")
    try:
        # Code that lies beside its weights is not run, and nobody is asked whether to.
        known: dict[str, Any] = {
            "trust_remote_code": False,
            "revision": pinned.commit or revision or None,
        }
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype="auto", **known)
        pinned.commit = known["revision"] = getattr(model.config, "_commit_hash", None)
        tokenizer: Any = AutoTokenizer.from_pretrained(name, padding_side="left", **known)
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
    try:
        parts = urllib.parse.urlsplit(url)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        is_web = False
    if not is_web:
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
        except (OSError, http.client.HTTPException) as error:
            reason, final = str(getattr(error, "reason", error)), False
        if final or pause is None:
            break
        time.sleep(pause)
    raise InputError(f"{request.full_url}: expected an answer, found {reason}; see its log")


def _messages(instruction: str, prompt: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": instruction}, {"role": "user", "content": prompt}]

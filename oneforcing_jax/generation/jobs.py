"""Lists of videos to make: prompts from files, seeds, file names, shards."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from oneforcing_jax.data.origin import Origin
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.setup import ranges
from oneforcing_jax.setup.ranges import Amount, Seed
from oneforcing_jax.system import bounded, places, processes, textfiles
from oneforcing_jax.system.command import share

# What a file of prompts may have.
BYTES, LINES = 64 * 2**20, 1_000_000
NAMINGS = ("prompt", "number")
# A file name has 255 bytes at most, of which a temporary name, the sample's number and the ending take some.
NAME_BYTES = 220
# Endings of files, which nobody means as a folder's.
OTHERS = (
    ".gif", ".webp", ".apng", ".png", ".jpg", ".jpeg", ".avif", ".webm", ".mkv", ".mov", ".avi", ".m4v",
    ".mpg", ".mpeg", ".ogv", ".wmv", ".flv", ".ts", ".3gp", ".npy", ".npz", ".txt", ".json", ".jsonl",
    ".csv", ".zip",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt of the user's, and where it stands.

    Attributes:
      words: as the user wrote it; it names the file.
      embedded: what the text encoder reads, the same or a rewritten prompt.
      seed: of its own; None: that of the command.
    """

    words: str
    embedded: str
    seed: int | None = None


@dataclasses.dataclass(frozen=True)
class Job:
    """One video.

    Attributes:
      number: among all videos of the command, shards included.
      line: number of its prompt.
      sample: number of the video among those of its prompt.
    """

    number: int
    line: int
    sample: int
    prompt: Prompt
    seed: int
    path: Path

    @property
    def latents(self) -> Path:
        """Where its latents go."""
        return self.path.with_suffix(".npy")


def read_prompts(path: Path, rewritten: Path | None = None) -> list[Prompt]:
    """Prompts of a file: one a line, or for .jsonl one JSON object a line.

    Args:
      path: a JSON object has "prompt", and may have "seed".
      rewritten: a file of as many lines, whose texts are embedded in their place.

    Raises:
      MissingInput, InputError: no file, no prompt in it, a bad line (named), or another number
        of rewritten ones.
    """
    rows = _read(path)
    texts = [words for words, _ in rows]
    if rewritten:
        texts = [words for words, _ in _read(rewritten)]
        if len(texts) != len(rows):
            raise InputError(
                f"{rewritten}: expected {len(rows)} prompts, one for each of {path}, found {len(texts)}"
            )
    return [Prompt(words, text, seed) for (words, seed), text in zip(rows, texts, strict=True)]


def _read(path: Path) -> list[tuple[str, int | None]]:
    if not path.is_file():
        raise MissingInput(f"prompts: expected a text file, found nothing at {path}")
    lines = textfiles.lines(textfiles.read(path, BYTES))
    if len(lines) > LINES:
        raise InputError(
            f"{path}: expected {LINES:,} lines at most, found {len(lines):,}; split the file"
        )
    if not any(line.strip() for line in lines):
        raise InputError(f"{path}: expected prompts, one a line, found none")
    return [_line(f"{path}, line {i}", line, path.suffix) for i, line in enumerate(lines, 1)]


def _line(where: str, line: str, suffix: str) -> tuple[str, int | None]:
    words, seed = line.strip(), None
    if suffix == ".jsonl":
        try:
            row = bounded.line(line)
            words, seed = row["prompt"].strip(), row.get("seed")
            more = row.keys() - {"prompt", "seed"}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                f'{where}: expected JSON like {{"prompt": "a cat", "seed": 1}}, found {line[:60]!r}'
            ) from None
        if more:
            raise InputError(
                f"{where}: expected a prompt and a seed, found {min(more)[:60]!r} too; remove it"
            )
    if not words:
        raise InputError(f"{where}: expected a prompt, found none; write one or remove the line")
    textfiles.check_unicode(where, words)
    if seed is not None and (type(seed) is not int or ranges.wrong(Seed, seed)):
        raise InputError(
            f"{where}: expected as seed {ranges.wrong(Seed, -1)}, found {seed!r:.60}; change it"
        )
    return words, seed


def file_name(words: str) -> str:
    """A prompt as a file name (NFC): "/" and what cannot be printed become "_", and a long one is cut."""
    name = re.sub(r"[/\\\x00-\x1f\x7f-\x9f\u2028\u2029]", "_", textfiles.form(words)).strip()
    name = name.encode()[:NAME_BYTES].decode(errors="ignore")
    # A name of dots would be a folder's, and one that begins with a dot is hidden.
    return re.sub(r"^\.", "_", name)


def make(
    prompts: Sequence[Prompt], out: Path, samples: int = 1, seed: int = 0, naming: str = "prompt"
) -> list[Job]:
    """The videos of a command, all samples of a prompt together.

    Args:
      prompts: of the command.
      out: a folder, or the file of a single video where it ends in .mp4.
      samples: videos of each prompt.
      seed: of prompts that have none; samples of one prompt differ in any case.
      naming: "prompt" ({prompt}-{k}.mp4), or "number" ({line}-{k}.mp4).

    Raises:
      InputError: no sample, two videos of one name, one file for several videos, or a file of another kind.
    """
    if samples < 1:
        raise InputError(f"samples: expected 1 or more, found {samples}")
    suffix = out.suffix.lower()
    if suffix in OTHERS and not out.is_dir():
        raise InputError(
            f"out: expected a folder, or a .mp4 file for a single video, found {out}; {suffix} is not "
            "written: name a .mp4 file, and convert it with ffmpeg"
        )
    single = suffix == ".mp4"
    if single and len(prompts) * samples > 1:
        raise InputError(
            f"out: expected a folder for {len(prompts) * samples} videos, found {out}; name one"
        )
    jobs: list[Job] = []
    seen: dict[Path, int] = {}
    for line, prompt in enumerate(prompts):
        for k in range(samples):
            stem = file_name(prompt.words) if naming == "prompt" else f"{line:05d}"
            path = out if single else out / f"{stem}-{k}.mp4"
            if path in seen:
                raise InputError(
                    f"prompts {seen[path] + 1} and {line + 1} would both be named {path.name[:60]!r}; "
                    "remove one, or pass --naming=number"
                )
            seen[path] = line
            own = seed if prompt.seed is None else prompt.seed
            jobs.append(Job(len(jobs), line, k, prompt, own, path))
    return jobs


def share_of(jobs: Sequence[Job], part: str) -> list[Job]:
    """The share of one of several commands, "0/4" for the first of four, or this process's part of it.

    Raises:
      InputError: another form, or a number that is too high.
    """
    index, count = processes.part(share(part))
    return list(jobs)[index::count]


def make_folder(folder: Path) -> None:
    """Makes the folder that videos go to.

    Raises:
      InputError: it cannot be made.
    """
    try:
        places.make(folder)
    except OSError as error:
        raise InputError(f"--out: cannot make {folder}: {error.strerror}; choose another") from None


def missing(
    jobs: Sequence[Job],
    origin: Callable[[Job], Origin],
    overwrite: bool = False,
    with_latents: bool = False,
) -> list[Job]:
    """Those that are not there yet; says how many are.

    Args:
      jobs: of this command.
      origin: what the file of a video is to say.
      overwrite: a video of another origin is not there.
      with_latents: one without its latents is not there.

    Raises:
      InputError: there is a video of another origin.
    """

    def is_made(job: Job) -> bool:
        # Files take their names when they are whole, but a copy of one may have failed.
        if not (job.path.is_file() and places.size(job.path)):
            return False
        other = origin(job).difference(job.path)
        if other and not overwrite:
            raise InputError(
                f"--out: expected nothing at {job.path}, or this command's video, found {other}; choose "
                "another --out, or make it anew with --overwrite"
            )
        latents = job.latents
        return not other and (
            not with_latents or (latents.is_file() and bool(places.size(latents)))
        )

    todo = [job for job in jobs if not is_made(job)]
    if len(todo) < len(jobs):
        print(f"{len(jobs) - len(todo)} of {len(jobs)} videos are there already")
    return todo


@dataclasses.dataclass(frozen=True)
class Listing:
    """The options that say which videos to make; `oneforcing_jax.generate --help` explains them."""

    prompt: str | None
    prompts: Path | None
    rewritten_prompts: Path | None
    out: Path
    naming: str
    samples: Amount
    seed: Seed
    shard: str
    save_latents: bool
    overwrite: bool

    def jobs(self) -> list[Job]:
        """All videos, of all shards; their folder is made.

        Raises:
          MissingInput, InputError: prompts that cannot be read, or a folder that cannot be made.
        """
        if self.prompts is not None:
            prompts = read_prompts(self.prompts, self.rewritten_prompts)
        elif self.rewritten_prompts:
            raise InputError("--rewritten_prompts: expected --prompts with it, found --prompt")
        elif self.prompt is None or not self.prompt.strip():
            raise InputError("prompt: expected words, found an empty prompt; say what to show")
        else:
            textfiles.check_unicode("--prompt", self.prompt)
            prompts = [Prompt(self.prompt, self.prompt)]
        jobs = make(prompts, self.out, self.samples, self.seed, self.naming)
        make_folder(jobs[0].path.parent)
        return jobs

    def missing(self, jobs: Sequence[Job], origin: Callable[[Job], Origin]) -> list[Job]:
        """Those of this shard that are not there yet; see `missing`."""
        return missing(share_of(jobs, self.shard), origin, self.overwrite, self.save_latents)

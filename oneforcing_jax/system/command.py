"""What all command lines share: numbers in options, and how a command ends.

An error in what was given is one line. So is any other, and a file keeps its traceback. Signals have their
exit codes, and one line too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from oneforcing_jax.errors import InputError
from oneforcing_jax.system import places
from oneforcing_jax.system.files import write_whole

PACKAGE = Path(__file__).parents[1].name
# The extra that brings a package, by the name under which it is imported.
EXTRAS = {
    "cv2": "measures", "diffusers": "verify", "ftfy": "wan", "gcsfs": "buckets", "huggingface_hub": "torch",
    "krippendorff": "serve", "lmdb": "lmdb", "matplotlib": "plots", "prometheus_client": "serve",
    "s3fs": "buckets", "safetensors": "torch", "sentencepiece": "wan", "skimage": "measures",
    "starlette": "serve", "torch": "torch", "transformers": "wan", "uvicorn": "serve", "wandb": "wandb",
    "websockets": "serve",
}  # fmt: skip
# Seconds until a signal that got lost is sent again.
_AGAIN = 0.05


class Terminated(KeyboardInterrupt):
    """SIGTERM came. It ends a command as Ctrl-C does."""


class Stopped(Exception):
    """A run was asked to end, and has saved; `number` is that of the signal."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


@contextlib.contextmanager
def ending(interrupted: str, folder: Path | None = None) -> Iterator[None]:
    """Runs a command. An error gives one line and exit code 1, and a signal that ended it 128 + its number.

    Threads print nothing. What ended one of them ends the command, where it did not end by itself.
    SIGTERM is an exception as Ctrl-C is, so that what is half written is removed.

    Args:
      interrupted: what is left after Ctrl-C, and what to do.
      folder: where the traceback of an error that nobody foresaw is kept, if it is there; otherwise the
        system's temporary folder.
    """
    silent: list[Any] = []
    before, ignored = threading.excepthook, sys.unraisablehook
    threading.excepthook = lambda found: silent.append(found.exc_value)
    sys.unraisablehook = lambda found: _ignored(found, ignored)
    use_all_memory()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold what is no text
            stream.reconfigure(errors="backslashreplace")
    handlers = _handle({signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _terminate})
    try:
        yield
        if silent:
            sys.exit(_line(silent[0], folder))
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.number)
    except KeyboardInterrupt as asked:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        sys.exit(128 + (signal.SIGTERM if isinstance(asked, Terminated) else signal.SIGINT))
    except SystemExit as end:
        if (
            not end.code
        ):  # a command ends by its last line; what it calls may not end it as if all were done
            sys.exit(
                "error: expected the command to come to its end, found that a part of it called sys.exit"
            )
        raise
    except BaseException as error:  # noqa: BLE001, libraries of other languages raise their panics so
        sys.exit(_line(error, folder))
    finally:
        threading.excepthook, sys.unraisablehook = before, ignored
        _handle(handlers)


def use_all_memory() -> None:
    """Lets JAX have a GPU's memory but for what CUDA and the libraries take beside it, where the user has not
    said how much. By itself it takes 75%, in which what fits the device (tools/plan.py) does not. It counts
    until the first use of a device."""
    if not {"XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION"} & os.environ.keys():
        os.environ["XLA_CLIENT_MEM_FRACTION"] = "0.93"


def starting() -> None:
    """Lets a signal end this process with one line, before the command has begun and after it has ended.

    A program calls it before it imports what takes seconds, and a library never.
    """
    _handle({signal.SIGINT: _leave, signal.SIGTERM: _leave})


def _handle(handlers: Mapping[int, Any]) -> dict[int, Any]:
    """Sets handlers where it may, but for signals that are ignored; gives those that were there before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = {n: handler for n, handler in handlers.items() if signal.getsignal(n) != signal.SIG_IGN}
    return {number: signal.signal(number, handler) for number, handler in heard.items()}


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _ignored(found: Any, hook: Callable[[Any], object]) -> None:
    """Sends a signal again whose exception was raised where Python ignores all, such as while it collects
    garbage. Later, for here it would be ignored, too."""
    if not issubclass(found.exc_type, KeyboardInterrupt):
        hook(found)
        return
    number = signal.SIGTERM if issubclass(found.exc_type, Terminated) else signal.SIGINT
    again = threading.Timer(_AGAIN, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted; the same command continues\n")
    os._exit(128 + number)


def _line(error: BaseException, folder: Path | None) -> str:
    """What an error says in one line. Where nobody foresaw it, a file keeps its traceback."""
    if isinstance(error, (InputError, OSError)):
        return " ".join(f"error: {error}".splitlines())
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and package in EXTRAS:
        return (
            f"error: expected the package {package}, found none; "
            f'pip install "oneforcing_jax[{EXTRAS[package]}]"'
        )
    if places.is_of_server(error):
        return f"error: a server failed: {places.reason(error)}; {places.AGAIN}"
    frames = traceback.extract_tb(error.__traceback__)
    place = [frame for frame in frames if PACKAGE in frame.filename] or frames
    where = f"{Path(place[-1].filename).name}, line {place[-1].lineno}"
    first = (str(error).splitlines() or [""])[0][:200]
    on_disk = folder is not None and not places.is_url(folder) and folder.is_dir()
    kept = folder if folder and on_disk else Path(tempfile.gettempdir())
    file = kept / f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    line = f"error: {type(error).__name__} in {where}: {first}; this is a fault of the program"
    try:
        write_whole(file, "".join(traceback.format_exception(error)).encode())
    except InputError:
        traceback.print_exception(error)
        return line
    return f"{line}, and {file} has its traceback"


class Help(argparse.RawDescriptionHelpFormatter):
    """Help of a command: its description as it is written, and the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        words, default = action.help or "", action.default
        silent = default is None or default is False or default in (argparse.SUPPRESS, (), [])
        if silent or "default" in words:
            return words
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
        return f"{words}; default {shown.replace('%', '%%')}"


def count(text: str) -> int:
    """A number of things of an option, 1 or more."""
    if not text.isdecimal() or not 0 < (found := int(text)) < 2**31:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found {text!r}")
    return found


def any_path(text: str) -> Path:
    """A file or folder of an option, a path or a URL."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, found an empty one; this folder is '.'")
    try:
        return places.path(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def named(text: str) -> tuple[str, Path]:
    """A name and a file or folder of an option, "NAME=PATH"."""
    name, _, path = text.partition("=")
    if not name.strip() or not path:
        raise argparse.ArgumentTypeError(f"expected NAME=PATH, found {text!r}")
    return name.strip(), any_path(path)


def numbers(text: str) -> tuple[float, ...]:
    """Numbers of an option, "1000,750,500,250"."""
    return tuple(float(part) for part in text.split(","))


def size(text: str) -> tuple[int, int]:
    """Rows and columns of an option, "480x832"."""
    rows, columns = text.lower().split("x")
    return int(rows), int(columns)


def axes(text: str) -> dict[str, int]:
    """Devices of one video along mesh axes, "sequence=4,context=2"."""
    sizes = dict(part.split("=") for part in text.split(","))
    if set(sizes) - {"context", "sequence", "tensor"}:
        raise ValueError(text)
    return {axis: int(size) for axis, size in sizes.items()}


def share(text: str) -> tuple[int, int]:
    """The share of one of several commands, "I/N": the I-th of N.

    Raises:
      InputError: another form, or a number that is too high.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise InputError(f"shard: expected I/N with I from 0 to N - 1, found {text!r}")
    return int(match[1]), int(match[2])


def printed(command: Sequence[str]) -> str:
    """What another program prints; "" where there is none, or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else done.stdout.strip()


def commit() -> str:
    """The commit of this package's code; "" where it lies without its repository."""
    return printed(("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"))

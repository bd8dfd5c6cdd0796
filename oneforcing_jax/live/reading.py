"""What clients send is read here, off the loop that serves them: as much at once as there are cores."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from oneforcing_jax.live import wire
from oneforcing_jax.live.studio import Studio, Wish

_T = TypeVar("_T")


class Reader:
    """Threads that read messages and look at what they wish for, and one that decodes images, in order.

    They are few: each of them takes the interpreter's lock from the loop now and then, and an image that is
    decoded takes memory.

    Args:
      studio: whose limits count.
    """

    def __init__(self, studio: Studio) -> None:
        self._studio, cores = studio, os.cpu_count() or 1
        self._threads = ThreadPoolExecutor(cores, "reader")
        self._images = ThreadPoolExecutor(1, "images")
        self._files = ThreadPoolExecutor(max(1, cores // 2), "files")

    async def message(self, content: str | bytes) -> dict[str, Any]:
        """The JSON object of a message; a short one is parsed at once.

        Raises:
          Refused: see `wire.parsed`.
        """
        if wire.is_heavy(content):
            return await _in(self._threads, wire.parsed, content)
        return wire.parsed(content)

    async def wish(self, said: Mapping[str, Any]) -> Wish:
        """What a message wishes for.

        Raises:
          Refused: see `wire.wish_of`.
        """
        threads = self._threads if said.get("image") is None else self._images
        return await _in(threads, wire.wish_of, said, self._studio)

    async def prompt(self, said: Mapping[str, Any]) -> str:
        """The prompt of a message.

        Raises:
          Refused: see `wire.prompt_of`.
        """
        return await _in(self._threads, wire.prompt_of, said, self._studio)

    async def encode(self, encode: Callable[[bytes], bytes], picture: bytes) -> bytes:
        """A picture in the form that one viewer asked for."""
        return await _in(self._threads, encode, picture)

    async def file(self, make: Callable[..., bytes], *of: Any) -> bytes:
        """A file that takes long to make."""
        return await _in(self._files, make, *of)

    def close(self) -> None:
        """Ends the threads; what waits for one is not begun."""
        for threads in (self._threads, self._images, self._files):
            threads.shutdown(wait=False, cancel_futures=True)


async def _in(threads: ThreadPoolExecutor, function: Callable[..., _T], *of: Any) -> _T:
    return await asyncio.get_running_loop().run_in_executor(threads, function, *of)

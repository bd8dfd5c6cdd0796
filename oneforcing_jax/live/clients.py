"""What each client of a server holds, so that one leaves room for the others."""

from __future__ import annotations

import contextlib
import ipaddress
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from starlette.requests import HTTPConnection

from oneforcing_jax.errors import Refused


class Room(NamedTuple):
    """How many of something there may be, and how many of them may be one client's."""

    all: int
    each: int


def client_of(asked: HTTPConnection) -> str:
    """Who asks: an address. A network of IPv6 of 64 bits is one client, for it has as many as it wants."""
    host = asked.client.host if asked.client else ""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        if isinstance(address, ipaddress.IPv6Address):
            known = address.ipv4_mapped
            return str(known or ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return host


class Clients:
    """Counts what clients hold; of the loop alone.

    Args:
      rooms: by name, such as "connections".
    """

    def __init__(self, rooms: Mapping[str, Room]) -> None:
        self._rooms = rooms
        self._held: dict[str, Counter[str]] = {name: Counter() for name in rooms}

    @contextlib.contextmanager
    def held(self, name: str, client: str) -> Iterator[None]:
        """Holds one of a room.

        Raises:
          Refused: the room is full, or this client has its part of it.
        """
        room, held = self._rooms[name], self._held[name]
        if held.total() >= room.all:
            raise Refused(503, f"{held.total()} {name} are open already; try again later")
        if held[client] >= room.each:
            raise Refused(503, f"{held[client]} {name} of this address are open already; close one")
        held[client] += 1
        try:
            yield
        finally:
            held[client] -= 1
            if not held[client]:
                del held[client]  # or every address that ever asked would stay

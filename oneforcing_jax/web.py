"""What servers of pages share: who may ask, headers of answers, and the address that they listen on."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from typing import TYPE_CHECKING

from oneforcing_jax.errors import InputError, Refused

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

TOKEN = "token"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src data: blob:; media-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# Types of the files of pages.
TYPES = {"css": "text/css", "js": "text/javascript"}
_LOCAL = ("localhost", "127.0.0.1", "::1")


def check_caller(asked: HTTPConnection, token: str, cookie: str) -> None:
    """Refuses a request of somebody who may not ask.

    Args:
      asked: the request.
      token: that every request needs, as a parameter or in the cookie; "" where only this machine can ask.
      cookie: its name.

    Raises:
      Refused: without the token, or under a name that is not this machine's.
    """
    if not token:
        # A page of another site must not reach this machine under a name of its own.
        if asked.url.hostname not in _LOCAL:
            raise Refused(400, "expected an address of this machine")
        return
    given = asked.query_params.get(TOKEN) or asked.cookies.get(cookie, "")
    if not secrets.compare_digest(given.encode(errors="replace"), token.encode()):
        raise Refused(
            403, "expected the token of this server; use the whole link that you were given"
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is any free one.

    Raises:
      InputError: an address that cannot be used.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"expected a free address, found {host} port {port}: {error}; choose another --host or --port"
        ) from None


def is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def link(host: str, listening: socket.socket, token: str) -> str:
    """What to open in a browser."""
    name = host if is_local(host) else socket.gethostname()
    address = f"http://{f'[{name}]' if ':' in name else name}:{listening.getsockname()[1]}/"
    return f"{address}?{TOKEN}={token}" if token else address

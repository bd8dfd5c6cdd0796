"""What servers of pages share: who may ask, what they ask, pages and their files, and how they are served."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import secrets
import socket
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import HTMLResponse, Response

from oneforcing_jax import pages
from oneforcing_jax.errors import InputError, Refused
from oneforcing_jax.system import sockets, textfiles

TOKEN = "token"
# Characters of a token.
SHORTEST = 8
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
      token: that every request needs, as a parameter or in the cookie (where it is quoted as in a link);
        "" where only this machine can ask.
      cookie: its name.

    Raises:
      Refused: without the token, or under a name that is not this machine's.
    """
    if not token:
        # A page of another site must not reach this machine under a name of its own.
        if _host(asked) not in _LOCAL:
            raise Refused(400, "expected an address of this machine")
        return
    given = asked.query_params.get(TOKEN) or unquote(asked.cookies.get(cookie, ""))
    if not same(given, token):
        raise Refused(
            403, "expected the token of this server; use the whole link that you were given"
        )


def _host(asked: HTTPConnection) -> str | None:
    """The name under which somebody asks, by the header alone; None where it is none."""
    try:
        return urlsplit(f"//{asked.headers.get('host', '')}").hostname
    except ValueError:
        return None


def same(given: str, expected: str) -> bool:
    """Whether two secrets are the same, in a time that does not say where they differ."""
    one, two = (words.encode("utf-8", "surrogatepass") for words in (given, expected))
    return secrets.compare_digest(one, two)


def checked(token: str, where: str) -> str:
    """A token that somebody chose.

    Raises:
      InputError: it is short, or no Unicode; says where it stands.
    """
    if len(token) < SHORTEST:
        raise InputError(
            f"{where}: expected {SHORTEST} characters or more, found {len(token)}; choose a longer one"
        )
    textfiles.check_unicode(where, token)
    return token


def check_origin(asked: HTTPConnection) -> None:
    """Refuses pages of other sites: browsers say whose page asks, and let it open a WebSocket anywhere.

    Raises:
      Refused: a page of another site, or of none.
    """
    origin, found = asked.headers.get("origin"), ""
    with contextlib.suppress(ValueError):
        found = urlsplit(origin or "").netloc
    if origin is not None and (not found or found != asked.headers.get("host")):
        raise Refused(403, "expected a page of this server")


async def body(request: Request, largest: int) -> bytes:
    """What a request of JSON brings. Other sites cannot send this type without being allowed to.

    Raises:
      Refused: another type, more bytes than `largest`, or an end before all of it was here.
    """
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise Refused(415, "expected the type application/json")
    content = bytearray()
    try:
        async for part in request.stream():
            content += part
            if len(content) > largest:
                raise Refused(413, f"expected {largest} bytes at most")
    except ClientDisconnect:
        sockets.LOG.error("a request ended before its body was whole")
        raise Refused(400, "expected a whole body, found its end before") from None
    return bytes(content)


def json_object(content: str | bytes) -> dict[str, Any]:
    """The JSON object that somebody sent.

    Raises:
      Refused: it is something else.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Refused(400, "expected a JSON object")
    return found


def page(html: str, token: str, cookie: str) -> Response:
    """A page, with a cookie that holds the token, if there is one."""
    response = HTMLResponse(html)
    if token:
        kept = quote(token, safe="")
        response.set_cookie(cookie, kept, 30 * 86400, httponly=True, samesite="strict")
    return response


async def static(request: Request) -> Response:
    """A file of a page, which has its own route."""
    name = request.scope["path"][1:]
    return Response(pages.part(name), media_type=TYPES[name.split(".")[-1]])


def server(app: Starlette, **more: Any) -> uvicorn.Server:
    """What serves an application: `.run(sockets=[...])` with a socket of `listen`, until it is interrupted.

    Args:
      app: the application.
      more: options of uvicorn.
    """
    patience, ending = sockets.watched()
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
        **ending,
        **more,
    )
    config.load()
    serving = uvicorn.Server(config)
    patience.connections = serving.server_state.connections
    return serving


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
    return f"{address}?{TOKEN}={quote(token, safe='')}" if token else address

"""The page of a study: a Starlette app, and how it is served."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from tqdm import tqdm

from oneforcing_jax import pages
from oneforcing_jax.errors import Refused
from oneforcing_jax.evaluation.raters.draw import CLIPS, SIDES, Draw
from oneforcing_jax.evaluation.raters.votes import Turn, Votes
from oneforcing_jax.system import textfiles, web
from oneforcing_jax.system.files import write_whole

# Bytes of a request.
LARGEST = 4096
_STATIC = ("theme.css", "raters.css", "together.js", "raters.js")
_Endpoint = Callable[[Request], Awaitable[Response]]


class Page:
    """What a study answers to browsers. Neither addresses nor answers name a model or a file of one.

    Args:
      folder, drawn, votes: of the study.
      token: that every request needs; "" where only this machine can ask.
      voted: called after each vote.
    """

    def __init__(
        self, folder: Path, drawn: Draw, votes: Votes, token: str, voted: Callable[[], None]
    ) -> None:
        self._folder, self._draw, self._votes = folder, drawn, votes
        self._token, self._voted = token, voted
        self._cookie = f"token_{drawn.hash[:8]}"
        self._page = pages.part("raters.html").replace("{{study}}", drawn.hash[:12])

    @property
    def app(self) -> Starlette:
        """The application."""
        get = {"/": self._index, "/clips/{number:int}/{side}": self._clip} | {
            f"/{name}": web.static for name in _STATIC
        }
        post = {"/api/join": self._join, "/api/turn": self._turn, "/api/vote": self._vote}
        routes = [Route(path, self._guarded(f), methods=["GET"]) for path, f in get.items()]
        routes += [Route(path, self._guarded(f), methods=["POST"]) for path, f in post.items()]
        return Starlette(routes=routes)

    def _guarded(self, endpoint: _Endpoint) -> _Endpoint:
        """An endpoint that needs the token, and whose errors are an HTTP status and one line of JSON."""

        async def answer(request: Request) -> Response:
            try:
                web.check_caller(request, self._token, self._cookie)
                response = await endpoint(request)
            except Refused as error:
                response = JSONResponse({"error": str(error)}, error.status)
            except sqlite3.OperationalError as error:
                line = f"the database cannot be used now: {error}; try again"
                response = JSONResponse({"error": line}, 503, {"Retry-After": "1"})
            except sqlite3.DatabaseError as error:
                response = JSONResponse({"error": f"the database is damaged: {error}"}, 500)
            response.headers.update(web.HEADERS)
            return response

        return answer

    async def _index(self, request: Request) -> Response:
        return web.page(self._page, self._token, self._cookie)

    async def _clip(self, request: Request) -> Response:
        number, side = request.path_params["number"], request.path_params["side"]
        if number >= len(self._draw.pairs) or side not in SIDES:
            raise Refused(404, "no such clip")
        file = self._folder / CLIPS / getattr(self._draw.pairs[number], side)
        if not file.is_file():
            raise Refused(500, "a clip of this study is gone; tell who runs it")
        return FileResponse(file, media_type="video/mp4")

    async def _join(self, request: Request) -> Response:
        await _body(request)
        return JSONResponse({"rater": await run_in_threadpool(self._votes.join)}, 201)

    async def _turn(self, request: Request) -> Response:
        body = await _body(request)
        return await self._next(body.get("rater"))

    async def _vote(self, request: Request) -> Response:
        body = await _body(request)
        rater, pair, choice = (body.get(key) for key in ("rater", "pair", "choice"))
        await run_in_threadpool(self._votes.vote, rater, pair, choice)
        self._voted()
        return await self._next(rater)

    async def _next(self, rater: Any) -> Response:
        turn: Turn = await run_in_threadpool(self._votes.turn, rater)
        prompt = None
        if turn.pair is not None:
            prompt = self._draw.prompts[self._draw.pairs[turn.pair].prompt].words
        record = turn._asdict() | {"prompt": prompt, "question": self._draw.question}
        return JSONResponse(record, headers={"Cache-Control": "no-store"})


async def _body(request: Request) -> Mapping[str, Any]:
    """The JSON object of a request.

    Raises:
      Refused: another type, too large, or no JSON object.
    """
    return web.json_object(await web.body(request, LARGEST))


def serve(folder: Path, drawn: Draw, host: str, port: int) -> None:
    """Serves a study until it is interrupted. Its address goes to standard output.

    Raises:
      InputError: votes on another draw, a damaged database, or an address that cannot be used.
    """
    votes = Votes(folder, drawn, create=True)
    listening = web.listen(host, port)
    token = "" if web.is_local(host) else _token(folder)
    with (
        listening,
        tqdm(total=drawn.needed, initial=votes.count(), desc="votes", unit="vote") as bar,
    ):

        def voted() -> None:
            bar.n = votes.count()
            bar.refresh()

        page = Page(folder, drawn, votes, token, voted)
        serving = web.server(page.app, lifespan="off")
        print(web.link(host, listening, token), flush=True)
        serving.run(sockets=[listening])


def _token(folder: Path) -> str:
    """The token of a study, made once so that links stay good.

    Raises:
      InputError: its file holds none that is long enough, or no text.
    """
    file = folder / web.TOKEN
    if not file.is_file():
        write_whole(file, secrets.token_urlsafe(16).encode(), mode=0o600)
    return web.checked(textfiles.read(file).strip(), str(file))

"""Pages and their data. `/p/TOKEN` is a participant's, `/owner` the study's owner's."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from anyio import CapacityLimiter, to_thread
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from data_prep.base import STEPS_PER_SECOND, DataError, printable
from dsaml_jax.errors import UsageError
from dsaml_jax.studio import export, ratings
from dsaml_jax.studio.forgetting import corpus_export, own_export
from dsaml_jax.studio.guard import Guard, Session, same
from dsaml_jax.studio.library import MOST_UPLOAD_BYTES, Library, StudioSong
from dsaml_jax.studio.modelling import Modelling, curve_rows
from dsaml_jax.studio.store import Participant, Store
from dsaml_jax.studio.takes import PASSES, check_entries, drawn_curve

MOST_JSON_BYTES = 2_000_000
MOST_NAME = 60
MOST_UPLOADS = 20
LOGIN_SECONDS = 1.0
"""A wrong password costs so long, one after the other."""

_HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Study:
    """Everything the pages need.

    Attributes:
      folder: of the study.
      store, library, modelling: what was done, the songs, the models.
      key: of the owner's link.
      password: by which the owner may also come in; empty: none.
      blind: participants see no curves before they have rated.
      ratings: songs that each participant rates.
      uploads: whether participants may bring songs.
    """

    folder: Path
    store: Store
    library: Library
    modelling: Modelling
    key: str
    password: str = ""
    blind: bool = False
    ratings: int = 10
    uploads: bool = True


def application(study: Study, hosts: list[str]) -> Starlette:
    """The ASGI application.

    Args:
      study: what it serves.
      hosts: names it answers to, see :class:`~dsaml_jax.studio.guard.Guard`.
    """
    from plotly import __file__ as plotly

    pages = _Pages(study)
    routes: list[BaseRoute] = [
        Route("/", pages.landing),
        Route("/owner", pages.owner),
        Route("/owner/login", pages.login, methods=["POST"]),
        Route("/owner/participants", pages.add_participant, methods=["POST"]),
        Route("/owner/participants/{number:int}/forget", pages.forget, methods=["POST"]),
        Route("/owner/state", pages.owner_state),
        Route("/owner/export/{what}", pages.owner_export),
        Mount("/static", StaticFiles(directory=_HERE / "static")),
        Mount("/plotly", StaticFiles(directory=Path(plotly).parent / "package_data")),
    ]
    for path, handler, method in (
        ("", pages.home, "GET"),
        ("/annotate/{song:int}", pages.annotate, "GET"),
        ("/curves", pages.curves, "GET"),
        ("/rate", pages.rate, "GET"),
        ("/state", pages.state, "GET"),
        ("/songs/{song:int}/audio", pages.audio, "GET"),
        ("/songs/{song:int}/curves", pages.song_curves, "GET"),
        ("/songs/{song:int}/takes", pages.begin_take, "POST"),
        ("/takes/{take:int}/log", pages.log, "POST"),
        ("/takes/{take:int}/finish", pages.finish, "POST"),
        ("/songs/{song:int}/adapt", pages.adapt, "POST"),
        ("/uploads", pages.upload, "POST"),
        ("/trial", pages.next_trial, "GET"),
        ("/trials/{trial:int}", pages.answer, "POST"),
        ("/export.zip", pages.own_export, "GET"),
    ):
        routes.append(Route(f"/p/{{token}}{path}", handler, methods=[method]))
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, hosts=hosts)],
        exception_handlers={DataError: _refused, UsageError: _refused, HTTPException: _http_error},
    )


async def _refused(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": printable(str(error))}, 422)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if "text/html" in request.headers.get("accept", ""):
        page = _page("message.html", title="Not here", message=error.detail)
        page.status_code = error.status_code
        return page
    return JSONResponse({"error": error.detail}, error.status_code)


_environment = Environment(
    loader=PackageLoader("dsaml_jax.studio", "pages"), autoescape=True, undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip


def _page(name: str, **values: Any) -> HTMLResponse:
    return HTMLResponse(_environment.get_template(name).render(**values))


async def _json(request: Request) -> Any:
    # A form of another page cannot send this type without asking first.
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise HTTPException(415, "send application/json")
    try:
        return json.loads(await _body(request, MOST_JSON_BYTES))
    except (ValueError, RecursionError):
        raise HTTPException(400, "this is not JSON") from None


async def _body(request: Request, most: int) -> bytes:
    """The whole body, as long as it is not larger than allowed, whatever the header says."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise HTTPException(413, f"more than {most:,} bytes")
        parts.append(part)
    return b"".join(parts)


class _Pages:
    """Handlers. What blocks runs in threads."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._store, self._library = study.store, study.library
        self._modelling = study.modelling
        self._session = Session()
        self._guessing = asyncio.Lock()
        # Threads of their own: recording never waits for these. One export at a time, as matplotlib's settings are
        # one for all threads.
        self._uploading, self._exporting = CapacityLimiter(2), CapacityLimiter(1)

    # ---- Who asks.

    def _who(self, request: Request) -> Participant:
        who = self._store.participant(request.path_params["token"])
        if who is None:
            raise HTTPException(404, "This link belongs to nobody. Ask for it again.")
        return who

    def _song(self, request: Request) -> tuple[Participant, StudioSong]:
        who, song = self._who(request), self._library.get(request.path_params["song"])
        if song is None or (song.brought_by is not None and who.id not in song.brought_by):
            raise HTTPException(404, "There is no such song.")
        return who, song

    def _require_owner(self, request: Request) -> None:
        if not self._session.holds(request):
            raise HTTPException(403, "Only the study's owner can see this.")

    # ---- The owner.

    async def landing(self, _: Request) -> Response:
        """Says what this is."""
        return _page(
            "message.html", title="DSAML studio",
            message="Open the link that you were given. It is yours alone.",
        )  # fmt: skip

    async def owner(self, request: Request) -> Response:
        """The owner's page, or the way in."""
        key = request.query_params.get("key")
        if key is not None:
            return await self._let_in(request, key)
        if not self._session.holds(request):
            return _page("login.html", failed=False)
        return _page(
            "owner.html", blind=self._study.blind, refused=self._library.refused, songs=list(self._library),
            needed=ratings.needed_in_words(self._study.ratings),
        )  # fmt: skip

    async def login(self, request: Request) -> Response:
        """Takes the password from the form."""
        form = parse_qs((await _body(request, 10_000)).decode(errors="replace"))
        return await self._let_in(request, form.get("key", [""])[0])

    async def _let_in(self, request: Request, key: str) -> Response:
        known = [self._study.key, *filter(None, [self._study.password])]
        if not any(same(key, one) for one in known):
            async with self._guessing:
                await asyncio.sleep(LOGIN_SECONDS)
            page = _page("login.html", failed=True)
            page.status_code = 403
            return page
        response = RedirectResponse("/owner", 303)
        self._session.begin(response, secure=request.url.scheme == "https")
        return response

    async def add_participant(self, request: Request) -> Response:
        """Makes a link."""
        self._require_owner(request)
        asked = await _json(request)
        name = asked.get("name") if isinstance(asked, dict) else None
        if not isinstance(name, str) or not 0 < len(name.strip()) <= MOST_NAME or not ratings.is_text(name):  # fmt: skip
            raise UsageError(f"a name has 1 to {MOST_NAME} characters")
        who = await run_in_threadpool(self._store.add_participant, printable(name.strip()))
        return JSONResponse({"token": who.token})

    async def forget(self, request: Request) -> Response:
        """Deletes a participant and all that is theirs."""
        self._require_owner(request)
        await _json(request)
        people = await run_in_threadpool(self._store.participants)
        number = _number(request, "number")
        found = [who for who in people if who.id == number]
        if not found:
            raise HTTPException(404, "There is no such participant.")
        # No export is written meanwhile.
        await to_thread.run_sync(self._modelling.forget, found[0], limiter=self._exporting)
        return JSONResponse({})

    async def owner_state(self, request: Request) -> Response:
        """Who has done what."""
        self._require_owner(request)
        return JSONResponse(await run_in_threadpool(self._owner_state))

    def _owner_state(self) -> dict[str, Any]:
        people = []
        for who in self._store.participants():
            trials = self._store.trials(who)
            people.append({
                "id": ratings.listener_id(who), "number": who.id, "name": who.name, "token": who.token,
                "annotated": len({take["song"] for take in self._store.finished_takes(who)}),
                "adapted": bool(self._store.adaptations(who)),
                "rated": sum(trial["rated"] is not None for trial in trials), "trials": len(trials),
            })  # fmt: skip
        return {"people": people, "summary": ratings.summary_of_study(self._store)}

    async def owner_export(self, request: Request) -> Response:
        """Files for the owner."""
        self._require_owner(request)
        what = request.path_params["what"]
        tables = {
            "ratings.csv": export.ratings_table,
            "recorded.csv": export.recorded_table,
            "summary.json": export.summary_json,
        }
        if what in tables:
            text = await run_in_threadpool(tables[what], self._store)
            return PlainTextResponse(text, headers=_attached(what))
        if what == "corpus.zip":
            path = corpus_export(self._study.folder)
            await self._export(export.write_corpus, path)
            return FileResponse(path, filename=what)
        raise HTTPException(404, "There is no such file.")

    async def _export(self, write: Callable[..., None], path: Path, *first: Any) -> None:
        job = partial(write, path, *first, self._store, self._library, self._modelling)
        await to_thread.run_sync(job, limiter=self._exporting)

    # ---- Participants: pages.

    async def home(self, request: Request) -> Response:
        """What there is to do."""
        who = await run_in_threadpool(self._who, request)
        return _page("home.html", who=who, blind=self._study.blind, uploads=self._study.uploads)

    async def annotate(self, request: Request) -> Response:
        """The plane, and a song."""
        who, song = await run_in_threadpool(self._song, request)
        practice = request.query_params.get("practice") == "1"
        dimension = request.query_params.get("draw", "both")
        if dimension not in PASSES:
            raise HTTPException(404, "There is no such dimension.")
        return _page("annotate.html", who=who, song=song, practice=practice, dimension=dimension)

    async def curves(self, request: Request) -> Response:
        """Everyone's curves, and one's own."""
        who = await run_in_threadpool(self._who, request)
        if await run_in_threadpool(self._hidden, who):
            raise HTTPException(403, "You see the curves when you have rated all songs.")
        return _page("curves.html", who=who)

    def _hidden(self, who: Participant) -> bool:
        """In a blind study curves are shown after the last rating."""
        if not self._study.blind:
            return False
        trials = self._store.trials(who)
        if not trials:  # nothing to rate is nothing to wait for
            return not self._store.adaptations(who) or bool(self._ratable(who))
        return any(trial["rated"] is None and self._library.get(trial["song"]) for trial in trials)

    def _ratable(self, who: Participant) -> list[int]:
        """Songs of the study that somebody has not drawn, also not to practise."""
        used = {row["song"] for row in self._store.rows("SELECT song FROM take WHERE participant = ? AND finished IS NOT NULL", who.id)}  # fmt: skip
        return [song.number for song in self._library if song.brought_by is None and song.number not in used]  # fmt: skip

    async def rate(self, request: Request) -> Response:
        """Two curves, and questions."""
        who = await run_in_threadpool(self._who, request)
        return _page("rate.html", who=who, fits=list(ratings.FITS), most_comment=ratings.MOST_COMMENT)  # fmt: skip

    # ---- Participants: data.

    async def state(self, request: Request) -> Response:
        """Songs, what is annotated, and how far adapting is."""
        who = await run_in_threadpool(self._who, request)
        return JSONResponse(await run_in_threadpool(self._state, who))

    def _state(self, who: Participant) -> dict[str, Any]:
        takes = self._store.finished_takes(who)
        drawn: dict[int, set[str]] = {}
        for take in takes:
            dimension = take["dimension"]
            both = ("arousal", "valence") if dimension == "both" else (dimension,)
            drawn.setdefault(take["song"], set()).update(both)
        songs = [
            {"number": song.number, "name": song.name, "seconds": round(song.seconds, 1),
             "drawn": sorted(drawn.get(song.number, ()))}
            for song in self._library.of(who)
        ]  # fmt: skip
        practised = self._store.row(
            "SELECT 1 FROM take WHERE participant = ? AND practice AND finished IS NOT NULL", who.id
        )
        trials = self._store.trials(who)
        hidden = self._hidden(who)
        ready = self._store.adaptations(who)
        latest = self._store.row(
            "SELECT * FROM adaptation WHERE participant = ? ORDER BY id DESC", who.id
        )
        adaptation = None
        if latest is not None:
            adaptation = dataclasses.asdict(self._modelling.progress(latest)) | {
                "number": latest["id"], "song": latest["song"],
                "ready": latest["finished"] is not None and latest["error"] is None,
                "before": latest["before"], "after": latest["after"],
            }  # fmt: skip
        return {
            "songs": songs,
            "suggested": self._modelling.suggested(
                who,
                {
                    number
                    for number, dimensions in drawn.items()
                    if dimensions >= set(self._modelling.learned)
                },
            ),
            "learned": self._modelling.learned,
            "practised": practised is not None,
            "adaptation": adaptation,
            # In a blind study it would say which curve is theirs.
            "about": self._modelling.about(ready[-1]["id"]) if ready and not hidden else None,
            "hidden": hidden,
            "rated": sum(trial["rated"] is not None for trial in trials),
            "to_rate": len(trials) or min(self._study.ratings, len(self._ratable(who))),
        }

    async def audio(self, request: Request) -> Response:
        """The sound of a song, in parts where browsers ask for parts."""
        _, song = await run_in_threadpool(self._song, request)
        path, media_type = await to_thread.run_sync(self._library.playable, song, limiter=self._uploading)  # fmt: skip
        return FileResponse(path, media_type=media_type, headers={"Cache-Control": "private, max-age=3600"})  # fmt: skip

    async def begin_take(self, request: Request) -> Response:
        """A take to record into: the one that was left unfinished, or a fresh one."""
        who, song = await run_in_threadpool(self._song, request)
        asked = await _json(request)
        if not isinstance(asked, dict) or asked.get("dimension") not in PASSES:
            raise UsageError("dimension is both, arousal or valence")
        begin = partial(
            self._store.begin_take, who, song.number, asked["dimension"],
            practice=asked.get("practice") is True, fresh=asked.get("fresh") is True,
        )  # fmt: skip
        take = await run_in_threadpool(begin)
        return JSONResponse({
            "take": take.number, "session": take.session, "next": len(take.entries),
            "curve": curve_rows(drawn_curve(take.entries)),
            "at": take.entries[-1][0] if take.entries else 0.0,
        })  # fmt: skip

    def _own_take(self, request: Request) -> int:
        take = self._store.take(self._who(request), _number(request, "take"))
        if take is None:
            raise HTTPException(404, "There is no such take.")
        return int(take["id"])

    async def log(self, request: Request) -> Response:
        """Keeps entries; those that came before are not kept twice, so a browser may send them again."""
        take = await run_in_threadpool(self._own_take, request)
        sent = await _json(request)
        session, first = _integers(sent, "session", "first")
        entries = check_entries(sent.get("entries"))
        return JSONResponse({"next": await run_in_threadpool(self._store.log, take, session, first, entries)})  # fmt: skip

    async def finish(self, request: Request) -> Response:
        """Closes a take that is complete."""
        take = await run_in_threadpool(self._own_take, request)
        session, count = _integers(await _json(request), "session", "count")
        await run_in_threadpool(self._store.finish_take, take, session, count)
        return JSONResponse({})

    async def adapt(self, request: Request) -> Response:
        """Starts to adapt."""
        who, song = await run_in_threadpool(self._song, request)
        await _json(request)
        number = await run_in_threadpool(self._modelling.adapt, who, song)
        return JSONResponse({"number": number})

    async def song_curves(self, request: Request) -> Response:
        """Everybody's curve of a song, and this listener's before and after."""
        who, song = await run_in_threadpool(self._song, request)
        return JSONResponse(await run_in_threadpool(self._song_curves, who, song))

    def _song_curves(self, who: Participant, song: StudioSong) -> dict[str, Any]:
        if self._hidden(who):
            raise HTTPException(403, "You see the curves when you have rated all songs.")
        latest = self._store.adaptations(who)
        curve = self._modelling.curve
        return {
            "step": 1 / STEPS_PER_SECOND,
            "everyone": curve_rows(curve("everyone", song)),
            "before": curve_rows(curve("before", song)),
            "after": curve_rows(curve(str(latest[-1]["id"]), song)) if latest else None,
            "drawn": curve_rows(self._modelling.labels(who, song)),
            "band": self._modelling.band(str(latest[-1]["id"]) if latest else "everyone", song),
        }

    async def upload(self, request: Request) -> Response:
        """Takes in a song."""
        who = await run_in_threadpool(self._who, request)
        if not self._study.uploads:
            raise HTTPException(403, "This study takes no songs.")
        if request.headers.get("content-type") != "application/octet-stream":
            raise HTTPException(415, "send application/octet-stream")
        if sum(who.id in people for people in self._store.uploads().values()) >= MOST_UPLOADS:
            raise HTTPException(429, f"{MOST_UPLOADS} songs are the most")
        content = await _body(request, MOST_UPLOAD_BYTES)
        name = request.query_params.get("name", "")
        take_in = partial(self._library.upload, who, name, content)
        song = await to_thread.run_sync(take_in, limiter=self._uploading)
        self._modelling.prepare(song)
        return JSONResponse({"number": song.number, "name": song.name})

    # ---- Rating.

    async def next_trial(self, request: Request) -> Response:
        """The next song to rate, without a word on which curve is which."""
        who = await run_in_threadpool(self._who, request)
        return JSONResponse(await run_in_threadpool(self._next_trial, who))

    def _next_trial(self, who: Participant) -> dict[str, Any]:
        adaptations = self._store.adaptations(who)
        if not adaptations:
            raise HTTPException(409, "Annotate a song and adapt first.")
        if not self._store.trials(who):
            differences = self._differences(who, adaptations[-1]["id"])
            if differences is None:
                return {"waiting": True}
            planned = ratings.plan(differences, self._study.ratings, random.Random(secrets.randbits(64)))  # fmt: skip
            if differences and not planned:
                return {"alike": True, "most": max(differences.values()), "needed": ratings.VISIBLE}
            self._store.add_trials(who, adaptations[-1]["id"], planned, blind=self._study.blind)
        trials = self._store.trials(who)
        for trial in trials:
            song = self._library.get(trial["song"])
            if trial["rated"] is None and song is not None:
                curves = [self._modelling.curve(key, song) for key in ("before", str(trial["adaptation"]))]  # fmt: skip
                if any(curve is None for curve in curves):
                    return {"waiting": True}
                sides = curves if trial["adapted_side"] == "right" else curves[::-1]
                return {
                    "trial": trial["id"], "song": song.number, "position": trial["position"] + 1, "of": len(trials),
                    "step": 1 / STEPS_PER_SECOND, "left": curve_rows(sides[0]), "right": curve_rows(sides[1]),
                }  # fmt: skip
        return {"done": True, "of": len(trials)}

    def _differences(self, who: Participant, adaptation: int) -> dict[int, float] | None:
        """Of each song that they can rate, how far the two curves are apart; None while some are not computed."""
        found = {}
        for number in self._ratable(who):
            song = self._library.get(number)
            if song is None:
                continue
            before, after = (self._modelling.curve(key, song) for key in ("before", str(adaptation)))  # fmt: skip
            if before is None or after is None:
                return None
            found[number] = ratings.apart(before, after)
        return found

    async def answer(self, request: Request) -> Response:
        """Keeps a rating."""
        who = await run_in_threadpool(self._who, request)
        rating = ratings.check_rating(await _json(request))
        rate = partial(self._store.rate, who, _number(request, "trial"), **rating)
        if not await run_in_threadpool(rate):
            raise HTTPException(409, "This was rated before.")
        return JSONResponse({})

    async def own_export(self, request: Request) -> Response:
        """A participant's own data and model."""
        who = await run_in_threadpool(self._who, request)
        if await run_in_threadpool(self._hidden, who):
            raise HTTPException(403, "You can have your model when you have rated all songs.")
        path = own_export(self._study.folder, who)
        await self._export(export.write_own, path, who)
        return FileResponse(path, filename="my_ears.zip")


def _number(request: Request, name: str) -> int:
    """A number of the path that SQLite can hold."""
    number: int = request.path_params[name]
    if number >= 2**63:
        raise HTTPException(404, "There is no such thing.")
    return number


def _integers(sent: Any, *names: str) -> list[int]:
    """Numbers of an object, 0 or more."""
    values = [sent.get(name) if isinstance(sent, dict) else None for name in names]
    if not all(type(value) is int and 0 <= value < 2**63 for value in values):
        raise UsageError(f"{' and '.join(names)} are needed, as whole numbers")
    return values  # type: ignore[return-value]


def _attached(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}

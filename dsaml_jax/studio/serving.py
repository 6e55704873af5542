"""Starts a study and serves it."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import uvicorn

from data_prep.analysis import embedder
from data_prep.base import replacing
from dsaml_jax.errors import UsageError
from dsaml_jax.runs import LoadedModel, at_strength, load_model, weights_digest
from dsaml_jax.studio import ratings
from dsaml_jax.studio.app import Study, application
from dsaml_jax.studio.forgetting import DATABASE, lock_of
from dsaml_jax.studio.guard import is_loopback
from dsaml_jax.studio.library import Library
from dsaml_jax.studio.modelling import Modelling
from dsaml_jax.studio.store import Store

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `dsaml studio` was asked for.

    Attributes:
      checkpoint: a run, or a personalised model.
      songs: folder with sound files.
      study: folder for everything that is kept.
      everyone: a run that predicts what listeners agree on; None: the one that `checkpoint` began from, if it is there.
      host, port: where to listen; port 0 takes a free one.
      allowed_hosts: further names by which browsers may call the server.
      password: of the owner; needed where other machines can connect.
      blind: see :class:`~dsaml_jax.studio.app.Study`.
      ratings: songs each participant rates.
      uploads: whether participants may bring songs; never in a blind study.
      weights: of ImageBind.
      strength: how far to adapt, see :class:`~dsaml_jax.config.MetaConfig`; None: as the checkpoint says.
    """

    checkpoint: Path
    songs: Path
    study: Path
    everyone: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8765
    allowed_hosts: tuple[str, ...] = ()
    password: str = ""
    blind: bool = False
    ratings: int = 10
    uploads: bool = True
    weights: Path | None = None
    strength: float | None = None


MIN_PASSWORD = 8


def serve(settings: Settings, say: Say) -> None:
    """Serves until it is interrupted.

    Args:
      settings: of the study.
      say: is given the links.

    Raises:
      UsageError: the address is taken or open to others without a password, or another studio holds the study.
      DataError: no song can be used.
    """
    listening = _listen(settings)
    with listening, open_study(settings) as study:
        host, port = listening.getsockname()[:2]
        reached = _address_of_this_machine() if host in ("0.0.0.0", "::") else host
        address = f"http://{f'[{reached}]' if ':' in reached else reached}:{port}"
        who = study.store.participants() or [study.store.add_participant("me")]
        study.modelling.wait_until_warm()
        say(f"songs: {len(study.library)}" + "".join(f"\nleft out: {why}" for why in study.library.refused.values()))  # fmt: skip
        if settings.blind:
            say(f"blind: {ratings.needed_in_words(settings.ratings)}")
        say(f"study's owner: {address}/owner?key={study.key}")
        say(f"{who[0].name}: {address}/p/{who[0].token}")
        config = uvicorn.Config(
            application(study, _names(settings, host, port)),
            log_level="warning", timeout_graceful_shutdown=2, server_header=False,
        )  # fmt: skip
        uvicorn.Server(config).run(sockets=[listening])


@contextlib.contextmanager
def open_study(settings: Settings) -> Iterator[Study]:
    """A study, held by this process until the block ends.

    Raises:
      UsageError: another studio holds it, or the models do not fit.
      DataError: no song can be used.
    """
    loaded = at_strength(load_model(settings.checkpoint), settings.strength)
    everyone = _everyone(settings, loaded)
    settings.study.mkdir(parents=True, exist_ok=True)
    lock = lock_of(settings.study)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UsageError(f"{settings.study}: another studio runs here; stop it, or choose another --study") from None  # fmt: skip
    with contextlib.ExitStack() as ends:
        ends.callback(lock.release)
        store = Store(settings.study / DATABASE)
        identity = f"{weights_digest(loaded)} {loaded.info.config.meta}"
        if store.fix("model", identity) != identity:
            raise UsageError(
                f"{settings.study}: was begun with another checkpoint or strength, and curves of both would be compared; "
                "choose another --study"
            )
        features = loaded.info.features
        embed = embedder(features, settings.weights)
        library = Library(store, settings.songs, settings.study / "uploads", settings.study / "cache", features, embed)  # fmt: skip
        ends.callback(library.close)
        modelling = Modelling(loaded, everyone, library, store, settings.study)
        ends.callback(modelling.close)
        yield Study(
            settings.study, store, library, modelling, _key(settings.study), settings.password,
            blind=settings.blind, ratings=settings.ratings, uploads=settings.uploads and not settings.blind,
        )  # fmt: skip


def _everyone(settings: Settings, loaded: LoadedModel) -> LoadedModel | None:
    """The run that was asked for, or the one that the checkpoint began from, if it is there still."""
    if settings.everyone is not None:
        everyone = load_model(settings.everyone)
        if everyone.info.features != loaded.info.features:
            raise UsageError(f"{settings.everyone} reads other features than {settings.checkpoint}; choose another --everyone")  # fmt: skip
        return everyone
    start = loaded.info.config.training.init_from
    for folder in (Path(start), settings.checkpoint.parent / Path(start).name) if start else ():
        with contextlib.suppress(UsageError):
            everyone = load_model(folder)
            if everyone.info.features == loaded.info.features:
                return everyone
    return None


def _listen(settings: Settings) -> socket.socket:
    if not is_loopback(settings.host) and len(settings.password) < MIN_PASSWORD:
        raise UsageError(
            f"others can reach {settings.host}: set a password of {MIN_PASSWORD} characters or more in "
            "$DSAML_STUDIO_PASSWORD (and mind that it travels unencrypted but through a tunnel or a proxy with TLS)"
        )
    try:
        return socket.create_server(
            (settings.host, settings.port),
            family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET,
        )
    except OSError as error:
        raise UsageError(f"cannot listen on {settings.host}:{settings.port} ({error.strerror or error}); choose another --port") from None  # fmt: skip


def _names(settings: Settings, host: str, port: int) -> list[str]:
    """Names by which browsers call the server."""
    names = [*settings.allowed_hosts]
    own = [host, "localhost", "127.0.0.1", "[::1]"]
    if not is_loopback(host):
        own += [socket.gethostname(), _address_of_this_machine()]
    names += [name for one in own for name in ((f"{one}:{port}", one) if port == 80 else (f"{one}:{port}",))]  # fmt: skip
    return names


def _address_of_this_machine() -> str:
    """As others see it; nothing is sent for that."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # RFC 5737: nobody's
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _key(study: Path) -> str:
    """The owner's key, made once for a study."""
    path = study / "owner.key"
    if not path.is_file():
        with replacing(path) as temporary:
            temporary.write_text(secrets.token_urlsafe(24))
        path.chmod(0o600)
    return path.read_text().strip()

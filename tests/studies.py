"""Studies that tests serve, and people who take part in them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import httpx
import numpy as np
import uvicorn

from dsaml_jax.studio import serving
from dsaml_jax.studio.app import application


@contextlib.contextmanager
def running(config):
    """The address and the study."""
    with serving.open_study(config) as study, socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        names = serving._names(config, "127.0.0.1", port)
        server = uvicorn.Server(uvicorn.Config(application(study, names), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{port}", study
        finally:
            server.should_exit = True
            thread.join()


class Person:
    """Somebody with a link, by HTTP."""

    def __init__(self, address, study, name="someone"):
        who = study.store.add_participant(name)
        self.who, self.page = who, f"{address}/p/{who.token}"
        self.client = httpx.Client(timeout=60.0)

    def get(self, path):
        return self.client.get(self.page + path)

    def post(self, path, body=None, **options):
        return self.client.post(self.page + path, json={} if body is None else body, **options)

    def state(self):
        return self.get("/state").json()

    def begin(self, song, dimension="both", **more):
        return self.post(f"/songs/{song}/takes", {"dimension": dimension} | more).json()

    def log(self, take, first, entries):
        sent = {"session": take["session"], "first": first, "entries": entries}
        return self.post(f"/takes/{take['take']}/log", sent)

    def finish(self, take, count):
        return self.post(f"/takes/{take['take']}/finish", {"session": take["session"], "count": count})  # fmt: skip

    def annotate(self, song, arousal, valence, dimension="both", seconds=45.0, **more):
        take = self.begin(song, dimension, **more)
        drawn = [
            [round(1000 * t), arousal + 0.1 * np.sin(t), valence + 0.1 * np.cos(t), None]
            for t in np.arange(0, seconds, 0.05)
        ]
        for first in range(0, len(drawn), 100):
            assert self.log(take, first, drawn[first : first + 100]).status_code == 200
        assert self.finish(take, len(drawn)).status_code == 200

    def adapt(self, song):
        assert self.post(f"/songs/{song}/adapt").status_code == 200
        while not (adaptation := self.state()["adaptation"])["finished"]:
            assert not adaptation["error"], adaptation
            time.sleep(0.05)
        return adaptation


def song_named(study, name):
    return next(song for song in study.library if song.name == name)

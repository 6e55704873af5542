"""What people do in a study, in one SQLite file.

Recorded entries are only ever added. WAL lets many read while one writes, and `synchronous=FULL` makes what was
acknowledged survive a power cut.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dsaml_jax.errors import UsageError
from dsaml_jax.studio.takes import Entry

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE song (number INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, name TEXT NOT NULL);
CREATE TABLE participant (
  id INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE, name TEXT NOT NULL, created REAL NOT NULL);
CREATE TABLE take (
  id INTEGER PRIMARY KEY, participant INTEGER NOT NULL REFERENCES participant, song INTEGER NOT NULL REFERENCES song,
  dimension TEXT NOT NULL, practice INTEGER NOT NULL, begun REAL NOT NULL, finished REAL,
  session INTEGER NOT NULL DEFAULT 0);
CREATE TABLE entry (
  take INTEGER NOT NULL REFERENCES take, number INTEGER NOT NULL, at REAL NOT NULL, arousal REAL, valence REAL,
  PRIMARY KEY (take, number)) WITHOUT ROWID;
CREATE TABLE adaptation (
  id INTEGER PRIMARY KEY, participant INTEGER NOT NULL REFERENCES participant, song INTEGER NOT NULL REFERENCES song,
  created REAL NOT NULL, finished REAL, error TEXT, before REAL, after REAL);
CREATE TABLE trial (
  id INTEGER PRIMARY KEY, participant INTEGER NOT NULL REFERENCES participant, adaptation INTEGER NOT NULL REFERENCES adaptation,
  song INTEGER NOT NULL REFERENCES song, position INTEGER NOT NULL, adapted_side TEXT NOT NULL,
  chosen_side TEXT, fit_left INTEGER, fit_right INTEGER, comment TEXT, listened REAL, rated REAL,
  UNIQUE (participant, song));
CREATE INDEX takes ON take (participant, song);
"""

Row = sqlite3.Row


@dataclasses.dataclass(frozen=True)
class Participant:
    """Somebody with a link."""

    id: int
    token: str
    name: str
    created: float


class Store:
    """A study's database; any thread may use it."""

    def __init__(self, path: Path) -> None:
        """Opens or makes it.

        Raises:
          UsageError: the file is of another version, or no database.
        """
        self._path = path
        self._local = threading.local()
        self._write = threading.Lock()
        try:
            with self._connection() as db:
                version = db.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:
                    db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")  # fmt: skip
                elif version != SCHEMA_VERSION:
                    raise UsageError(f"{path}: a study of another version ({version}); choose another --study")  # fmt: skip
        except sqlite3.DatabaseError as error:
            raise UsageError(f"{path}: not a study's database ({error})") from None

    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._local, "db"):
            db = sqlite3.connect(self._path, timeout=30.0)
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            self._local.db = db
        connection: sqlite3.Connection = self._local.db
        return connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction; one writer at a time, so that nobody waits in SQLite's busy loop."""
        with self._write, self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            yield db

    def rows(self, query: str, *values: Any) -> list[Row]:
        """What a SELECT finds."""
        return self._connection().execute(query, values).fetchall()

    def row(self, query: str, *values: Any) -> Row | None:
        """The first row that a SELECT finds."""
        found: Row | None = self._connection().execute(query, values).fetchone()
        return found

    # ---- People and songs.

    def add_participant(self, name: str) -> Participant:
        """A new person, with a token that nobody can guess."""
        made = Participant(0, secrets.token_urlsafe(16), name, time.time())
        with self._writing() as db:
            number = db.execute(
                "INSERT INTO participant (token, name, created) VALUES (?, ?, ?)",
                (made.token, made.name, made.created),
            ).lastrowid
        assert number is not None
        return dataclasses.replace(made, id=number)

    def participant(self, token: str) -> Participant | None:
        """Whose token it is."""
        found = self.row("SELECT * FROM participant WHERE token = ?", token)
        return None if found is None else Participant(**found)

    def participants(self) -> list[Participant]:
        """All, in the order they came."""
        return [Participant(**row) for row in self.rows("SELECT * FROM participant ORDER BY id")]

    def song_number(self, digest: str, name: str) -> int:
        """The number of a song in this study, by its content: the same for ever, under whatever name."""
        with self._writing() as db:
            db.execute(
                "INSERT INTO song (digest, name) VALUES (?, ?) ON CONFLICT (digest) DO UPDATE SET name = excluded.name",
                (digest, name),
            )
            number: int = db.execute("SELECT number FROM song WHERE digest = ?", (digest,)).fetchone()[0]  # fmt: skip
        return number

    # ---- Annotations.

    def begin_take(self, who: Participant, song: int, dimension: str, *, practice: bool) -> int:
        """A fresh take of a song; earlier ones stay, and the last finished one counts."""
        with self._writing() as db:
            take = db.execute(
                "INSERT INTO take (participant, song, dimension, practice, begun) VALUES (?, ?, ?, ?, ?)",
                (who.id, song, dimension, practice, time.time()),
            ).lastrowid
        assert take is not None
        return take

    def take(self, who: Participant, take: int) -> Row | None:
        """A take, if it is theirs."""
        return self.row("SELECT * FROM take WHERE id = ? AND participant = ?", take, who.id)

    def open_take(
        self, who: Participant, song: int, dimension: str, *, practice: bool
    ) -> Row | None:
        """The take to go on with after a reload."""
        return self.row(
            "SELECT * FROM take WHERE participant = ? AND song = ? AND dimension = ? AND practice = ? ORDER BY id DESC",
            who.id, song, dimension, practice,
        )  # fmt: skip

    def open_session(self, take: int) -> int:
        """A page begins to record into a take: none that did so before can go on."""
        with self._writing() as db:
            db.execute("UPDATE take SET session = session + 1 WHERE id = ?", (take,))
            (session,) = db.execute("SELECT session FROM take WHERE id = ?", (take,)).fetchone()
        return int(session)

    def log(self, take: int, session: int, first: int, entries: Sequence[Entry]) -> int:
        """Adds entries `first`, `first + 1`, ...; those that are there already are left as they are.

        Returns:
          the number of the next entry.

        Raises:
          UsageError: entries before `first` are missing, the take is finished, or another page records into it.
        """
        with self._writing() as db:
            finished, current = db.execute("SELECT finished, session FROM take WHERE id = ?", (take,)).fetchone()  # fmt: skip
            if session != current:
                raise UsageError("this song was opened in another window; go on there, or reload this one")  # fmt: skip
            (known,) = db.execute("SELECT COUNT(*) FROM entry WHERE take = ?", (take,)).fetchone()
            new = entries[max(known - first, 0) :]
            if first > known:
                raise UsageError(f"entry {known} is missing")
            if new and finished is not None:
                raise UsageError("this take is finished")
            db.executemany(
                "INSERT INTO entry VALUES (?, ?, ?, ?, ?)",
                [(take, known + number, *entry) for number, entry in enumerate(new)],
            )
        return int(known + len(new))

    def entries(self, take: int) -> list[Entry]:
        """All of a take, in the order they were recorded."""
        found = self.rows("SELECT at, arousal, valence FROM entry WHERE take = ? ORDER BY number", take)  # fmt: skip
        return [tuple(row) for row in found]

    def finish_take(self, take: int) -> None:
        """Nothing can be added any more, and the take counts."""
        with self._writing() as db:
            db.execute("UPDATE take SET finished = coalesce(finished, ?) WHERE id = ?", (time.time(), take))  # fmt: skip

    def finished_takes(self, who: Participant) -> list[Row]:
        """Takes that count, latest last."""
        return self.rows(
            "SELECT * FROM take WHERE participant = ? AND finished IS NOT NULL AND NOT practice ORDER BY id",
            who.id,
        )

    # ---- Adapting and rating.

    def add_adaptation(self, who: Participant, song: int) -> int:
        """A request to adapt."""
        with self._writing() as db:
            number = db.execute(
                "INSERT INTO adaptation (participant, song, created) VALUES (?, ?, ?)",
                (who.id, song, time.time()),
            ).lastrowid
        assert number is not None
        return number

    def end_adaptation(
        self, number: int, *, error: str | None = None, before: float | None = None, after: float | None = None
    ) -> None:  # fmt: skip
        """What came of it: RMSE on the song, or why not."""
        with self._writing() as db:
            db.execute(
                "UPDATE adaptation SET finished = ?, error = ?, before = ?, after = ? WHERE id = ?",
                (time.time(), error, before, after, number),
            )

    def adaptations(self, who: Participant) -> list[Row]:
        """Those that worked, latest last."""
        return self.rows(
            "SELECT * FROM adaptation WHERE participant = ? AND finished IS NOT NULL AND error IS NULL ORDER BY id",
            who.id,
        )

    def add_trials(self, who: Participant, adaptation: int, trials: Sequence[tuple[int, str]]) -> None:  # fmt: skip
        """Songs to rate, in order, with the side that shows the adapted curve."""
        with self._writing() as db:
            db.executemany(
                "INSERT OR IGNORE INTO trial (participant, adaptation, song, position, adapted_side) VALUES (?, ?, ?, ?, ?)",
                [(who.id, adaptation, song, position, side) for position, (song, side) in enumerate(trials)],
            )  # fmt: skip

    def trials(self, who: Participant) -> list[Row]:
        """A person's, in order."""
        return self.rows("SELECT * FROM trial WHERE participant = ? ORDER BY position", who.id)

    def rate(
        self, who: Participant, trial: int, *, chosen_side: str, fits: tuple[int, int], comment: str, listened: float
    ) -> bool:  # fmt: skip
        """Keeps a rating, once; returns whether there was such a trial that was not rated yet."""
        with self._writing() as db:
            changed = db.execute(
                "UPDATE trial SET chosen_side = ?, fit_left = ?, fit_right = ?, comment = ?, listened = ?, rated = ? "
                "WHERE id = ? AND participant = ? AND rated IS NULL",
                (chosen_side, *fits, comment, listened, time.time(), trial, who.id),
            ).rowcount
        return changed == 1

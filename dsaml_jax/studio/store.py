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

SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE study (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE song (number INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, name TEXT NOT NULL);
CREATE TABLE participant (
  id INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE, name TEXT NOT NULL, created REAL NOT NULL);
CREATE TABLE upload (
  song INTEGER NOT NULL REFERENCES song, participant INTEGER NOT NULL REFERENCES participant,
  PRIMARY KEY (song, participant));
CREATE TABLE take (
  id INTEGER PRIMARY KEY, participant INTEGER NOT NULL REFERENCES participant, song INTEGER NOT NULL REFERENCES song,
  dimension TEXT NOT NULL, practice INTEGER NOT NULL, begun REAL NOT NULL, finished REAL,
  session INTEGER NOT NULL DEFAULT 0);
CREATE TABLE entry (
  take INTEGER NOT NULL REFERENCES take, number INTEGER NOT NULL, at REAL NOT NULL, arousal REAL, valence REAL,
  until REAL, PRIMARY KEY (take, number)) WITHOUT ROWID;
CREATE TABLE adaptation (
  id INTEGER PRIMARY KEY, participant INTEGER NOT NULL REFERENCES participant, song INTEGER NOT NULL REFERENCES song,
  created REAL NOT NULL, finished REAL, error TEXT, before REAL, after REAL);
CREATE TABLE trial (
  id INTEGER PRIMARY KEY, participant INTEGER NOT NULL REFERENCES participant, adaptation INTEGER NOT NULL REFERENCES adaptation,
  song INTEGER NOT NULL REFERENCES song, position INTEGER NOT NULL, adapted_side TEXT NOT NULL, blind INTEGER NOT NULL,
  chosen_side TEXT, fit_left INTEGER, fit_right INTEGER, comment TEXT, listened REAL, rated REAL,
  difference REAL, control INTEGER NOT NULL DEFAULT 0,
  UNIQUE (participant, song), UNIQUE (participant, position));
CREATE INDEX takes ON take (participant, song);
"""
_FROM_VERSION_1 = """
ALTER TABLE trial ADD COLUMN difference REAL;
ALTER TABLE trial ADD COLUMN control INTEGER NOT NULL DEFAULT 0;
"""

Row = sqlite3.Row


@dataclasses.dataclass(frozen=True)
class Participant:
    """Somebody with a link."""

    id: int
    token: str
    name: str
    created: float


@dataclasses.dataclass(frozen=True)
class StoredSong:
    """A song that is known to the study: its number, and the digest of its bytes."""

    number: int
    digest: str


@dataclasses.dataclass(frozen=True)
class Take:
    """What a page records into.

    Attributes:
      number: of the take.
      session: of the page.
      entries: what is there already.
    """

    number: int
    session: int
    entries: list[Entry]


@dataclasses.dataclass(frozen=True)
class PlannedTrial:
    """Two curves of a song to compare.

    Attributes:
      song: its number.
      adapted_side: of `left` and `right`: which shows the adapted curve.
      difference: how far the two are apart, see :func:`dsaml_jax.studio.ratings.apart`.
      control: they are too much alike to be told apart.
    """

    song: int
    adapted_side: str
    difference: float | None = None
    control: bool = False


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
                elif version == 1:
                    db.executescript(f"BEGIN; {_FROM_VERSION_1} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")  # fmt: skip
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
            db.execute("PRAGMA secure_delete = ON")
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

    def fix(self, name: str, value: str) -> str:
        """Keeps a fact about the study for good, and returns what is kept: the value of the first time."""
        with self._writing() as db:
            db.execute("INSERT OR IGNORE INTO study VALUES (?, ?)", (name, value))
            (kept,) = db.execute("SELECT value FROM study WHERE name = ?", (name,)).fetchone()
        return str(kept)

    # ---- People and songs.

    def add_participant(self, name: str) -> Participant:
        """A new person, with a token that nobody can guess."""
        with self._writing() as db:
            made = Participant(
                _last_participant(db) + 1, secrets.token_urlsafe(16), name, time.time()
            )
            db.execute("INSERT INTO participant (id, token, name, created) VALUES (?, ?, ?, ?)", dataclasses.astuple(made))  # fmt: skip
        return made

    def participant(self, token: str) -> Participant | None:
        """Whose token it is."""
        found = self.row("SELECT * FROM participant WHERE token = ?", token)
        return None if found is None else Participant(**found)

    def forget(self, who: Participant, songs: Sequence[StoredSong]) -> None:
        """Deletes somebody, all that they did, and these songs; nothing of it is left in the file.

        Their number is given to nobody else.
        """
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO study VALUES (?, ?)", (_LAST_PARTICIPANT, str(_last_participant(db))))  # fmt: skip
            db.execute("DELETE FROM entry WHERE take IN (SELECT id FROM take WHERE participant = ?)", (who.id,))  # fmt: skip
            for table in ("trial", "take", "adaptation", "upload"):
                db.execute(f"DELETE FROM {table} WHERE participant = ?", (who.id,))
            db.execute("DELETE FROM participant WHERE id = ?", (who.id,))
            db.executemany("DELETE FROM song WHERE number = ?", [(song.number,) for song in songs])
        with self._write:
            # What was deleted is overwritten (`secure_delete`); pages that were moved and the log hold older copies.
            self._connection().execute("VACUUM")
            while self._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                time.sleep(0.01)  # somebody reads

    def brought_by_alone(self, who: Participant) -> list[StoredSong]:
        """Songs that somebody brought, and that nobody else brought or used: such a one is the study's own by now."""
        rows = self.rows(
            "SELECT number, digest FROM song JOIN upload ON song = number GROUP BY number "
            "HAVING count(*) = 1 AND max(participant) = ?1 AND number NOT IN (SELECT song FROM take WHERE participant != ?1 "
            "UNION SELECT song FROM trial WHERE participant != ?1 UNION SELECT song FROM adaptation WHERE participant != ?1)",
            who.id,
        )
        return [StoredSong(*row) for row in rows]

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

    def song_name(self, digest: str) -> str | None:
        """What a song was called when it was seen last."""
        found = self.row("SELECT name FROM song WHERE digest = ?", digest)
        return None if found is None else str(found["name"])

    def add_upload(self, who: Participant, song: int) -> None:
        """A song that somebody brought."""
        with self._writing() as db:
            db.execute("INSERT OR IGNORE INTO upload VALUES (?, ?)", (song, who.id))

    def uploads(self) -> dict[int, set[int]]:
        """Song to those who brought it."""
        found: dict[int, set[int]] = {}
        for row in self.rows("SELECT * FROM upload"):
            found.setdefault(row["song"], set()).add(row["participant"])
        return found

    # ---- Annotations.

    def begin_take(
        self, who: Participant, song: int, dimension: str, *, practice: bool, fresh: bool = False
    ) -> Take:
        """Goes on with the take that was left unfinished, or begins one; no other page can record into it any more.

        Args:
          who: draws.
          song: its number.
          dimension: of :data:`~dsaml_jax.studio.takes.PASSES`.
          practice: is never used.
          fresh: begin one in any case; earlier ones stay, and the last finished one counts.
        """
        with self._writing() as db:
            last = db.execute(
                "SELECT id, finished FROM take WHERE participant = ? AND song = ? AND dimension = ? AND practice = ? "
                "ORDER BY id DESC",
                (who.id, song, dimension, practice),
            ).fetchone()
            if fresh or last is None or last["finished"] is not None:
                number = db.execute(
                    "INSERT INTO take (participant, song, dimension, practice, begun) VALUES (?, ?, ?, ?, ?)",
                    (who.id, song, dimension, practice, time.time()),
                ).lastrowid
            else:
                number = last["id"]
            assert number is not None
            db.execute("UPDATE take SET session = session + 1 WHERE id = ?", (number,))
            (session,) = db.execute("SELECT session FROM take WHERE id = ?", (number,)).fetchone()
        return Take(int(number), int(session), self.entries(number))

    def take(self, who: Participant, take: int) -> Row | None:
        """A take, if it is theirs."""
        return self.row("SELECT * FROM take WHERE id = ? AND participant = ?", take, who.id)

    def log(self, take: int, session: int, first: int, entries: Sequence[Entry]) -> int:
        """Adds entries `first`, `first + 1`, ...; those that are there already are left as they are.

        Returns:
          the number of the next entry.

        Raises:
          UsageError: entries before `first` are missing, the take is finished, or another page records into it.
        """
        with self._writing() as db:
            finished, known = _recording(db, take, session)
            new = entries[max(known - first, 0) :]
            if first > known:
                raise UsageError(f"entry {known} is missing")
            if new and finished is not None:
                raise UsageError("this take is finished")
            db.executemany(
                "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?)",
                [(take, known + number, *entry) for number, entry in enumerate(new)],
            )
        return int(known + len(new))

    def entries(self, take: int) -> list[Entry]:
        """All of a take, in the order they were recorded."""
        found = self.rows("SELECT at, arousal, valence, until FROM entry WHERE take = ? ORDER BY number", take)  # fmt: skip
        return [tuple(row) for row in found]

    def finish_take(self, take: int, session: int, count: int) -> None:
        """Nothing can be added any more, and the take counts.

        Raises:
          UsageError: another page records into it, or not all of its `count` entries are here.
        """
        with self._writing() as db:
            _, known = _recording(db, take, session)
            if count != known:
                raise UsageError(f"{known} of {count} entries are saved")
            db.execute("UPDATE take SET finished = coalesce(finished, ?) WHERE id = ?", (time.time(), take))  # fmt: skip

    def finished_takes(self, who: Participant) -> list[Row]:
        """Takes that count, latest last."""
        return self.rows(
            "SELECT * FROM take WHERE participant = ? AND finished IS NOT NULL AND NOT practice ORDER BY finished",
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

    def adaptation(self, number: int) -> Row | None:
        """One, however far it is."""
        return self.row("SELECT * FROM adaptation WHERE id = ?", number)

    def all_adaptations(self, who: Participant) -> list[int]:
        """Numbers of somebody's, those that failed too."""
        return [row["id"] for row in self.rows("SELECT id FROM adaptation WHERE participant = ?", who.id)]  # fmt: skip

    def adaptations(self, who: Participant) -> list[Row]:
        """Those that worked, latest last."""
        return self.rows(
            "SELECT * FROM adaptation WHERE participant = ? AND finished IS NOT NULL AND error IS NULL ORDER BY id",
            who.id,
        )

    def unfinished_adaptations(self) -> list[Row]:
        """Those that were asked for when the studio stopped."""
        return self.rows("SELECT * FROM adaptation WHERE finished IS NULL ORDER BY id")

    def adaptations_in_use(self) -> list[int]:
        """The latest of each participant, and those that trials compare."""
        found = self.rows(
            "SELECT max(id) AS id FROM adaptation WHERE finished IS NOT NULL AND error IS NULL GROUP BY participant "
            "UNION SELECT adaptation FROM trial WHERE rated IS NULL"
        )
        return [row["id"] for row in found]

    def add_trials(self, who: Participant, adaptation: int, trials: Sequence[PlannedTrial], *, blind: bool) -> None:  # fmt: skip
        """Songs to rate, in order; a person has one plan, the first.

        Args:
          who: rates.
          adaptation: which curves are theirs.
          trials: the plan.
          blind: whether they see no named curves before.
        """
        with self._writing() as db:
            if db.execute("SELECT 1 FROM trial WHERE participant = ?", (who.id,)).fetchone() is None:  # fmt: skip
                db.executemany(
                    "INSERT INTO trial (participant, adaptation, song, position, adapted_side, blind, difference, control) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    [(who.id, adaptation, x.song, place, x.adapted_side, blind, x.difference, x.control)
                     for place, x in enumerate(trials)],
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


_LAST_PARTICIPANT = "last participant"


def _last_participant(db: sqlite3.Connection) -> int:
    """The highest number that somebody has or had."""
    (number,) = db.execute(
        "SELECT max((SELECT coalesce(max(id), 0) FROM participant), "
        "coalesce((SELECT CAST(value AS INTEGER) FROM study WHERE name = ?), 0))",
        (_LAST_PARTICIPANT,),
    ).fetchone()
    return int(number)


def _recording(db: sqlite3.Connection, take: int, session: int) -> tuple[float | None, int]:
    """When a take was finished, and how many entries it has, for the page that records into it."""
    finished, current = db.execute("SELECT finished, session FROM take WHERE id = ?", (take,)).fetchone()  # fmt: skip
    if session != current:
        raise UsageError("this song was opened in another window; go on there, or reload this one")
    (known,) = db.execute("SELECT COUNT(*) FROM entry WHERE take = ?", (take,)).fetchone()
    return finished, int(known)

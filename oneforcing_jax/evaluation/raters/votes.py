"""The votes of a study: one SQLite file. Each change is a transaction, and on disk before it is answered."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from oneforcing_jax.errors import InputError, MissingInput, Refused
from oneforcing_jax.evaluation.raters.draw import SIDES, Draw

FILE = "votes.db"
CHOICES = (*SIDES, "tie")
# Seconds for which a pair that a rater was shown counts as theirs.
HOLD = 30 * 60
# Seconds that a transaction waits for another one.
PATIENCE = 2.0
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS draw (hash TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS raters (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, at REAL NOT NULL)",
    """CREATE TABLE IF NOT EXISTS shown (pair INTEGER, rater INTEGER REFERENCES raters, at REAL NOT NULL,
    PRIMARY KEY (pair, rater))""",
    """CREATE TABLE IF NOT EXISTS votes (pair INTEGER, rater INTEGER, at REAL NOT NULL,
    choice TEXT NOT NULL CHECK (choice IN ('left', 'right', 'tie')),
    PRIMARY KEY (pair, rater), FOREIGN KEY (pair, rater) REFERENCES shown)""",
)


class Vote(NamedTuple):
    """What a rater said of a pair; both are numbers."""

    pair: int
    rater: int
    choice: str


class Turn(NamedTuple):
    """Where a rater stands.

    Attributes:
      pair: number of the pair to look at; None when there is none left for this rater.
      done: votes of this rater.
      total: these and the pairs that they may still see.
    """

    pair: int | None
    done: int
    total: int


def wrong_checks(drawn: Draw, votes: list[Vote]) -> Counter[int]:
    """How many attention checks each rater got wrong."""
    wrong = (
        v.rater for v in votes if v.pair in drawn.checks and v.choice != drawn.pairs[v.pair].ours
    )
    return Counter(wrong)


class Votes:
    """The database of a study; each method is one transaction, from any thread or process.

    Args:
      folder: of the study.
      drawn: its draw.
      create: makes the database where there is none.

    Raises:
      MissingInput: no database, and none is to be made.
      InputError: a database of another draw, a damaged one, or one that is locked for long.
    """

    def __init__(self, folder: Path, drawn: Draw, create: bool = False) -> None:
        self._file, self._draw = folder / FILE, drawn
        if not create and not self._file.is_file():
            raise MissingInput(f"expected votes, found no {self._file}; serve the study first")
        try:
            if self._file.is_file() and not self._file.stat().st_size:
                raise sqlite3.DatabaseError("zero bytes")
            with self._transaction() as database:
                if database.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                    raise sqlite3.DatabaseError("damaged pages")
                for table in _SCHEMA:
                    database.execute(table)
                found = database.execute("SELECT hash FROM draw").fetchone()
                if not found:
                    database.execute("INSERT INTO draw VALUES (?)", (drawn.hash,))
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"{self._file}: expected a database of votes, found: {error}; close what else uses it, or "
                "restore it from a copy"
            ) from None
        if found and found[0] != drawn.hash:
            raise InputError(
                f"{self._file}: expected votes on this draw ({drawn.hash[:12]}), found votes on another "
                f"({found[0][:12]}); restore draw.json, or draw into a new folder"
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._file, timeout=PATIENCE, isolation_level=None)
        with contextlib.closing(connection) as database:
            for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                database.execute(f"PRAGMA {setting}")
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    def all(self) -> list[Vote]:
        """Every vote, in the order of pairs and raters."""
        with self._transaction() as database:
            return _votes(database)

    def join(self) -> str:
        """Takes in a rater and gives the key that says who they are."""
        key = secrets.token_urlsafe(16)
        with self._transaction() as database:
            database.execute("INSERT INTO raters (key, at) VALUES (?, ?)", (key, time.time()))
        return key

    def turn(self, key: Any) -> Turn:
        """The pair that a rater looks at now: the last one shown without a vote, or another.

        Raises:
          Refused: no such rater.
        """
        with self._transaction() as database:
            rater, now = _rater(database, key), time.time()
            votes = _votes(database)
            mine = {vote.pair for vote in votes if vote.rater == rater}
            shown = list(database.execute("SELECT pair, rater, at FROM shown"))
            held = {pair for pair, who, _ in shown if who == rater} - mine
            counted = self._counted(votes)
            open_ = [
                n for n in range(len(self._draw.pairs)) if n not in mine and self._open(n, counted)
            ]
            # Pairs that others are looking at count as voted on, but for the one that this rater holds.
            voted = {(vote.pair, vote.rater) for vote in votes}
            out = self._out(votes)
            looked_at = Counter(
                pair for pair, who, at in shown
                if who not in (rater, *out) and (pair, who) not in voted and at > now - HOLD
            )  # fmt: skip
            free = [n for n in open_ if n in held or self._open(n, counted + looked_at)]
            if not free:
                return Turn(None, len(mine), len(mine))
            pair = min(free, key=lambda n: (n not in held, _order(key, n)))
            database.execute("INSERT OR REPLACE INTO shown VALUES (?, ?, ?)", (pair, rater, now))
            return Turn(pair, len(mine), len(mine) + len(free))

    def vote(self, key: Any, pair: Any, choice: Any) -> None:
        """Records a vote. The same vote again changes nothing.

        Raises:
          Refused: no such rater, pair or choice; a pair that this rater was not shown, has judged
            otherwise, or that others have judged often enough since.
        """
        if type(pair) is not int or not 0 <= pair < len(self._draw.pairs):
            raise Refused(404, "expected the number of a pair of this study")
        if choice not in CHOICES:
            raise Refused(400, f"expected a choice among {', '.join(CHOICES)}")
        with self._transaction() as database:
            rater, votes = _rater(database, key), _votes(database)
            before = [v.choice for v in votes if (v.pair, v.rater) == (pair, rater)]
            if before == [choice]:
                return
            if before:
                raise Refused(409, "this rater has voted on this pair")
            seen = "SELECT 1 FROM shown WHERE pair = ? AND rater = ?"
            if not database.execute(seen, (pair, rater)).fetchone():
                raise Refused(409, "this rater was not shown this pair")
            if not self._open(pair, self._counted(votes)):
                raise Refused(409, "this pair has all its votes")
            row = (pair, rater, time.time(), choice)
            database.execute("INSERT INTO votes VALUES (?, ?, ?, ?)", row)

    def count(self) -> int:
        """Votes that count; those on attention checks are not among them."""
        return self._counted(self.all()).total()

    def _out(self, votes: list[Vote]) -> set[int]:
        """Raters whose votes do not count."""
        return {
            rater for rater, n in wrong_checks(self._draw, votes).items() if n > self._draw.wrong
        }

    def _counted(self, votes: list[Vote]) -> Counter[int]:
        """Votes that count of each pair that is no attention check."""
        out = self._out(votes)
        return Counter(
            v.pair for v in votes if v.rater not in out and v.pair not in self._draw.checks
        )

    def _open(self, pair: int, counted: Counter[int]) -> bool:
        """Whether a pair needs another vote; attention checks are for everyone."""
        return pair in self._draw.checks or counted[pair] < self._draw.settings.raters


def _rater(database: sqlite3.Connection, key: Any) -> int:
    known = isinstance(key, str) and key.isascii()
    query = "SELECT id FROM raters WHERE key = ?"
    found = known and database.execute(query, (key,)).fetchone()
    if not found:
        raise Refused(404, "expected a rater of this study; begin anew")
    return int(found[0])


def _votes(database: sqlite3.Connection) -> list[Vote]:
    query = "SELECT pair, rater, choice FROM votes ORDER BY pair, rater"
    return [Vote(*row) for row in database.execute(query)]


def _order(key: str, pair: int) -> str:
    """Every rater has an order of their own."""
    return hashlib.sha256(f"{key} {pair}".encode()).hexdigest()

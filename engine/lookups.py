"""What commands look up beside their streams: questions to a read model, and sums of a tally.

A tally is exact at the end of the log, however far behind its read model is: that has a sum at its
checkpoint, and the tally remembers what the events behind the checkpoint add. The bus reads all of
it in the statement of the streams, so that streams and sums are those of one moment.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, cast
from uuid import UUID

from psycopg import Cursor
from psycopg.rows import TupleRow

from engine.event_store import Appended, Beside, GroupCommitRecorder, Loaded, Save
from infra.postgres.connection import column, texts

F = TypeVar("F")

MOST_EVENTS = 20_000
"""So many events behind the checkpoint a tally remembers; where there are more, the newest of them
do not count."""


class Lookup(ABC, Generic[F]):
    """A question whose answer a command's own answer includes, and which no stream holds.

    A subclass is a port: the bus gets a reader for it, which answers many lookups in one query.
    """

    @property
    @abstractmethod
    def default(self) -> F:
        """The answer on a bus without a reader."""


Place = tuple[type["Sum"], int]


class Sum(Lookup[int]):
    """Asks a tally for the sum of a key."""

    default = 0

    @property
    @abstractmethod
    def key(self) -> UUID:
        """Whose sum it is."""

    @property
    def place(self) -> Place:
        """What stands for the sum in a table: unlike that of a UUID, its hash costs nothing."""
        return type(self), self.key.int


Reader = Callable[[Cursor[TupleRow], Sequence[Any]], Sequence[Any]]
"""Return the answers to lookups of one type, in their order."""


Answers = dict[Lookup[Any], Any]


class LookupResults(NamedTuple):
    """What was looked up for a batch; the sums go on with what its commands add."""

    answers: Answers
    sums: dict[Place, int]


class Tally:
    """Sums by key at the end of the log; of one bus, in its thread."""

    def __init__(
        self,
        *,
        reached: bytes,
        sums: bytes,
        changes: Mapping[str, int],
        key_of: Callable[[bytes], int],
        most: int = MOST_EVENTS,
    ) -> None:
        """`reached` asks how far the read model is, `sums` for an array of its sums, given an array
        of keys. `changes` are what events add, by their topics; `key_of` reads the key, as a
        number, from what is stored of one.
        """
        self._reached = b"coalesce((%b), 0)" % reached
        self._columns = (self._reached, b"ARRAY(%b)" % sums)
        self._changes = changes
        self._topics = texts(list(changes))
        self._key_of = key_of
        self._most = most
        # Every change behind the floor, up to the position.
        self._floor = self._position = 0
        self._behind: deque[tuple[int, int, int]] = deque()
        self._sums: dict[int, int] = {}

    @property
    def remembered(self) -> int:
        """How many changes are remembered."""
        return len(self._behind)

    def question(self, keys: Sequence[UUID], columns: tuple[bytes, ...]) -> Beside:
        """Return what has to be read for the sums of these keys, behind other columns."""
        after = self._position, self._topics, self._room
        return Beside((*columns, *self._columns), (column(keys),), self._reached, after)

    def answer(
        self, keys: Iterable[int], columns: Sequence[Any], news: Sequence[TupleRow], head: int
    ) -> list[int] | None:
        """Return the sums of keys, as numbers, at the head, given what was read for `question`.

        None where there is more to be read: once there is room for it, or where another copy of the
        read model, which is farther behind, is live now. Ask again.
        """
        reached, sums = columns
        if reached < self._floor:
            self._begin(0)
            return None
        is_cut = len(news) >= self._room
        if reached > self._position:
            self._begin(reached)
        self._drop_until(reached)
        for _, position, topic, state, *_ in news:
            self._remember(position, topic, state)
            self._position = position
        if not is_cut:
            self._position = head
        elif self._room:
            return None
        behind = self._sums
        return [at + behind.get(key, 0) for key, at in zip(keys, sums, strict=True)]

    def record(self, saves: Iterable[Save], appended: Appended) -> None:
        """Remember what this bus has recorded, unless others were in between: then it is read."""
        if appended.head != self._position or not self._room:
            return
        for save, positions in zip(saves, appended.outcomes, strict=True):
            if positions is None:
                continue
            for position, event in zip(positions, save.events, strict=True):
                if event.topic in self._changes:
                    self._remember(position, event.topic, event.state)
                self._position = position

    @property
    def _room(self) -> int:
        """How many more changes may be remembered."""
        return max(0, self._most - len(self._behind))

    def _begin(self, position: int) -> None:
        self._floor = self._position = position
        self._behind.clear()
        self._sums.clear()

    def _drop_until(self, reached: int) -> None:
        behind, sums = self._behind, self._sums
        while behind and behind[0][0] <= reached:
            _, key, change = behind.popleft()
            if left := sums.get(key, 0) - change:
                sums[key] = left
            else:
                # Whatever else is behind comes to nothing, and so is as good as forgotten.
                sums.pop(key, None)
        self._floor = reached

    def _remember(self, position: int, topic: str, state: bytes) -> None:
        key, change = self._key_of(state), self._changes[topic]
        self._behind.append((position, key, change))
        self._sums[key] = self._sums.get(key, 0) + change


Readers = Mapping[type[Lookup[Any]], Reader | Tally]
"""What answers lookups, by their types."""


class Lookups:
    """What one bus looks up, by readers and a tally."""

    def __init__(self, readers: Readers) -> None:
        """One type at most is summed up by a tally."""
        self._readers: dict[type[Lookup[Any]], Reader] = {}
        self._tally: Tally | None = None
        self._summed: type[Lookup[Any]] | None = None
        for kind, reader in readers.items():
            if not isinstance(reader, Tally):
                self._readers[kind] = reader
            elif self._tally is None:
                self._tally, self._summed = reader, kind
            else:
                raise TypeError(f"{kind.__name__} is the second type with a tally.")

    def load(
        self,
        recorder: GroupCommitRecorder,
        streams: Sequence[tuple[UUID, int]],
        keys: Sequence[tuple[str, str]],
        lookups: Sequence[Lookup[Any]],
        columns: tuple[bytes, ...],
    ) -> tuple[Loaded[Answers], LookupResults]:
        """Return what the recorder has of streams, keys and columns, and the answers to lookups."""
        tally, kind = self._tally, self._summed
        # By place: many likes of one batch ask for the same sum.
        sums = [cast("Sum", each) for each in lookups if type(each) is kind]
        asked = {each.place: each.key for each in sums}

        def load(beside: Beside) -> Loaded[Answers]:
            return recorder.fetch(streams, keys, lambda cursor: self._ask(cursor, lookups), beside)

        if tally is None or not asked:
            loaded = load(Beside(columns))
            return loaded, LookupResults(loaded.extra, {})
        numbers = [number for _, number in asked]
        while True:
            loaded = load(tally.question([*asked.values()], columns))
            beside = loaded.beside[len(columns) :]
            found = tally.answer(numbers, beside, loaded.news, loaded.head)
            if found is not None:
                return loaded, LookupResults(loaded.extra, dict(zip(asked, found, strict=True)))

    def record(self, saves: Sequence[Save], appended: Appended) -> None:
        """Take in what the bus has recorded."""
        if self._tally is not None:
            self._tally.record(saves, appended)

    def _ask(self, cursor: Cursor[TupleRow], lookups: Sequence[Lookup[Any]]) -> Answers:
        found: Answers = {}
        if not self._readers:
            return found
        for kind in self._readers.keys() & map(type, lookups):
            asked = [each for each in lookups if type(each) is kind]
            found.update(zip(asked, self._readers[kind](cursor, asked), strict=True))
        return found

"""The coordination store: what it must be able to do, whoever does it.

`Store` is a small Protocol with two implementations that pass the same contract
tests: `nbsched.storage.etcd` and `nbsched.storage.memory`. A second server
(ZooKeeper) would plug in here. Nothing here knows what a job is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias


@dataclass(frozen=True)
class KeyValue:
    """A key as stored; revisions count the whole store's changes."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int


@dataclass(frozen=True)
class Snapshot:
    """What lay under a prefix at ``revision``, sorted by key."""

    revision: int
    items: tuple[KeyValue, ...]


@dataclass(frozen=True)
class Changed:
    """A watched key was put."""

    item: KeyValue


@dataclass(frozen=True)
class Deleted:
    """A watched key was deleted, or its lease ended."""

    key: str
    revision: int


WatchEvent: TypeAlias = Changed | Deleted


@dataclass(frozen=True)
class Absent:
    """Guard: the key does not exist."""

    key: str


@dataclass(frozen=True)
class Present:
    """Guard: the key exists."""

    key: str


@dataclass(frozen=True)
class CreatedAt:
    """Guard: the key exists and was created at this revision. The leader's fence."""

    key: str
    revision: int


@dataclass(frozen=True)
class ModifiedAt:
    """Guard: the key was last put at this revision."""

    key: str
    revision: int


Guard: TypeAlias = Absent | Present | CreatedAt | ModifiedAt


@dataclass(frozen=True)
class Put:
    key: str
    value: bytes
    lease: int | None = None
    """Id of the lease with which the key vanishes."""


@dataclass(frozen=True)
class Delete:
    key: str


Change: TypeAlias = Put | Delete


@dataclass(frozen=True)
class Commit:
    """Whether all guards held, and the store's revision after it."""

    succeeded: bool
    revision: int


class WatchEndedError(Exception):
    """A watch ended, for whatever reason. List again, then watch from revision + 1."""


class Lease(Protocol):
    """A lease that is being kept alive in the background."""

    id: int
    ttl_s: float

    @property
    def trusted_until(self) -> float:
        """Monotonic time until which its holder may act on it: two thirds of the TTL
        after the last successful keepalive was *sent*."""

    @property
    def alive(self) -> bool:
        """False once the store has said that the lease is gone."""

    async def lost(self) -> None:
        """Return when the lease is gone."""

    async def revoke(self) -> None:
        """End the lease now, and with it its keys. Never raises."""


class Store(Protocol):
    """A linearizable key-value store with leases, guarded commits and watches.

    Every call raises ``StoreUnreachableError`` when no endpoint answers in time.
    """

    async def get(self, key: str) -> KeyValue | None: ...

    async def list(self, prefix: str) -> Snapshot: ...

    async def commit(self, guards: Sequence[Guard], changes: Sequence[Change]) -> Commit:
        """Apply all changes in one transaction if all guards hold, else none."""

    def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[Sequence[WatchEvent], None]:
        """Changes under ``prefix`` from a revision on; those of one transaction together.

        Raises WatchEndedError when it ends; it never just stops.
        """

    async def lease(self, ttl_s: float) -> Lease: ...

    async def close(self) -> None: ...

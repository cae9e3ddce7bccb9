"""What every `Store` must do: the same tests on the twin in memory and on real etcd."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Protocol

import pytest

from nbsched.errors import StoreUnreachableError
from nbsched.names import Names
from nbsched.settings import Settings
from nbsched.storage import (
    Absent,
    Changed,
    CreatedAt,
    Delete,
    Deleted,
    KeyValue,
    ModifiedAt,
    Present,
    Put,
    Store,
    WatchEndedError,
    WatchEvent,
)
from nbsched.storage.etcd import EtcdStore
from nbsched.storage.memory import MemoryStore, MemoryStoreServer
from support.etcd import EtcdServer

SHORT_TTL_S = 1.0
"""The least that etcd grants with the election timeout of the tests."""
WITHIN_S = 60.0


class Backend(Protocol):
    """How to reach one kind of server, and what only its operator can do."""

    async def connect(self) -> Store: ...

    async def revoke(self, lease_id: int) -> None: ...

    async def compact(self, revision: int) -> None: ...


class MemoryBackend:
    def __init__(self) -> None:
        self._server = MemoryStoreServer()

    async def connect(self) -> Store:
        return MemoryStore(self._server)

    async def revoke(self, lease_id: int) -> None:
        self._server.revoke(lease_id)

    async def compact(self, revision: int) -> None:
        self._server.compact(revision)


class EtcdBackend:
    def __init__(self, server: EtcdServer, namespace: str) -> None:
        self._server = server
        self._settings = Settings(etcd=(server.endpoint,), namespace=namespace, local=True)

    async def connect(self) -> Store:
        return await EtcdStore.connect(self._settings)

    async def revoke(self, lease_id: int) -> None:
        self._server.revoke_lease(lease_id)

    async def compact(self, revision: int) -> None:
        self._server.compact(revision)


@pytest.fixture(params=["memory", "etcd"])
def backend(request: pytest.FixtureRequest, namespace: str) -> Iterator[Backend]:
    if request.param == "memory":
        yield MemoryBackend()
    else:
        yield EtcdBackend(request.getfixturevalue("etcd_server"), namespace)


@pytest.fixture
def root(namespace: str) -> str:
    return Names(namespace).root


@asynccontextmanager
async def opened(backend: Backend) -> AsyncIterator[Store]:
    store = await backend.connect()
    try:
        yield store
    finally:
        await store.close()


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 120))


async def soon(awaitable: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(awaitable, WITHIN_S)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.01)


async def take(watch: AsyncIterator[Sequence[WatchEvent]], count: int) -> list[WatchEvent]:
    """The next ``count`` events, or more when they came together."""
    events: list[WatchEvent] = []
    while len(events) < count:
        events.extend(await soon(anext(watch)))
    return events


def by_revision(events: list[WatchEvent]) -> list[int]:
    return [e.item.mod_revision if isinstance(e, Changed) else e.revision for e in events]


async def get(store: Store, key: str) -> KeyValue:
    item = await store.get(key)
    assert item is not None
    return item


# ---------------------------------------------------------------- keys


def test_absent_key_is_none(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            assert await store.get(f"{root}a") is None

    run(main())


def test_put_key_is_read_back_with_its_revisions(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            first = await store.commit([], [Put(f"{root}a", b"1")])
            second = await store.commit([], [Put(f"{root}a", b"\x00\xff")])
            assert first.succeeded
            assert second.revision == first.revision + 1
            assert await store.get(f"{root}a") == KeyValue(
                f"{root}a", b"\x00\xff", first.revision, second.revision
            )

    run(main())


def test_key_that_is_deleted_and_put_again_is_created_anew(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            await store.commit([], [Put(f"{root}a", b"1")])
            await store.commit([], [Delete(f"{root}a")])
            assert await store.get(f"{root}a") is None
            again = await store.commit([], [Put(f"{root}a", b"2")])
            item = await get(store, f"{root}a")
            assert (item.create_revision, item.mod_revision) == (again.revision,) * 2

    run(main())


def test_list_is_sorted_and_stays_under_its_prefix(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            keys = [f"{root}b/2", f"{root}b/1", f"{root}b/10", f"{root}c", f"{root}b"]
            done = await store.commit([], [Put(key, key.encode()) for key in keys])
            snapshot = await store.list(f"{root}b/")
            assert [i.key for i in snapshot.items] == [f"{root}b/{n}" for n in ("1", "10", "2")]
            assert [i.value for i in snapshot.items] == [i.key.encode() for i in snapshot.items]
            assert snapshot.revision == done.revision
            assert (await store.list(f"{root}nothing/")).items == ()

    run(main())


def test_namespaces_do_not_see_each_other(backend: Backend) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            ours, longer = Names("iso").root, Names("iso-2").root
            done = await store.commit([], [Put(f"{ours}a", b""), Put(f"{longer}a", b"")])
            assert [i.key for i in (await store.list(ours)).items] == [f"{ours}a"]
            async with aclosing(store.watch(ours, done.revision)) as watch:
                assert [e.item.key for e in await soon(anext(watch))] == [f"{ours}a"]
            await store.commit([], [Delete(f"{ours}a"), Delete(f"{longer}a")])

    run(main())


def test_list_of_many_keys_is_complete(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            keys = [f"{root}{n:05}" for n in range(2300)]
            await store.commit([], [Put(key, b"x") for key in keys])
            assert [i.key for i in (await store.list(root)).items] == keys

    run(main())


def test_clients_see_each_others_writes(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as one, opened(backend) as other:
            await one.commit([], [Put(f"{root}a", b"1")])
            assert (await get(other, f"{root}a")).value == b"1"

    run(main())


# ---------------------------------------------------------------- guards


def test_absent_guard_lets_only_the_first_in(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            first = await store.commit([Absent(f"{root}a")], [Put(f"{root}a", b"1")])
            second = await store.commit([Absent(f"{root}a")], [Put(f"{root}a", b"2")])
            assert (first.succeeded, second.succeeded) == (True, False)
            assert second.revision == first.revision
            assert (await get(store, f"{root}a")).value == b"1"

    run(main())


def test_present_guard_needs_the_key(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            guard = [Present(f"{root}a")]
            assert not (await store.commit(guard, [Put(f"{root}b", b"")])).succeeded
            await store.commit([], [Put(f"{root}a", b"")])
            assert (await store.commit(guard, [Put(f"{root}b", b"")])).succeeded

    run(main())


def test_created_at_guard_holds_over_changes_and_not_over_a_new_key(
    backend: Backend, root: str
) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            created = (await store.commit([], [Put(f"{root}leader", b"1")])).revision
            await store.commit([], [Put(f"{root}leader", b"2")])
            fence = [CreatedAt(f"{root}leader", created)]
            assert (await store.commit(fence, [Put(f"{root}x", b"1")])).succeeded
            await store.commit([], [Delete(f"{root}leader")])
            assert not (await store.commit(fence, [Put(f"{root}x", b"2")])).succeeded
            await store.commit([], [Put(f"{root}leader", b"1")])
            assert not (await store.commit(fence, [Put(f"{root}x", b"3")])).succeeded
            assert (await get(store, f"{root}x")).value == b"1"

    run(main())


def test_modified_at_guard_notices_every_change(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            seen = (await store.commit([], [Put(f"{root}a", b"1")])).revision
            guard = [ModifiedAt(f"{root}a", seen)]
            assert (await store.commit(guard, [Put(f"{root}a", b"2")])).succeeded
            assert not (await store.commit(guard, [Put(f"{root}a", b"3")])).succeeded

    run(main())


def test_one_guard_that_fails_stops_the_whole_commit(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            await store.commit([], [Put(f"{root}a", b"1")])
            done = await store.commit(
                [Present(f"{root}a"), Absent(f"{root}a")],
                [Put(f"{root}b", b"1"), Delete(f"{root}a")],
            )
            assert not done.succeeded
            assert [i.key for i in (await store.list(root)).items] == [f"{root}a"]

    run(main())


def test_guards_alone_only_ask(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            done = await store.commit([], [Put(f"{root}a", b"1")])
            yes = await store.commit([Present(f"{root}a")], [])
            no = await store.commit([Absent(f"{root}a")], [])
            assert (yes.succeeded, no.succeeded) == (True, False)
            assert yes.revision == no.revision == done.revision

    run(main())


def test_guard_at_revision_zero_is_a_bug(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            for guard in (CreatedAt(f"{root}a", 0), ModifiedAt(f"{root}a", 0)):
                with pytest.raises(ValueError, match="can never hold"):
                    await store.commit([guard], [Put(f"{root}a", b"")])

    run(main())


def test_unguarded_commit_of_any_length_is_made(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            half_mib = bytes(512 * 1024)
            await store.commit([], [Put(f"{root}{n}", half_mib) for n in range(5)])
            assert len((await store.list(root)).items) == 5
            await store.commit([], [Put(f"{root}small/{n}", b"") for n in range(300)])
            assert len((await store.list(f"{root}small/")).items) == 300

    run(main())


def test_guarded_commit_of_too_many_changes_is_refused(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            guard = [Absent(f"{root}a")]
            puts = [Put(f"{root}{n}", b"") for n in range(129)]
            with pytest.raises(ValueError, match=r"129 changes .* Cut it"):
                await store.commit(guard, puts)
            assert (await store.commit(guard, puts[:128])).succeeded

    run(main())


def test_value_that_is_too_large_is_refused(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            with pytest.raises(ValueError, match="Put large values into a log"):
                await store.commit([], [Put(f"{root}a", bytes(1536 * 1024))])
            largest = bytes(1536 * 1024 - 512)
            assert (await store.commit([], [Put(f"{root}a", largest)])).succeeded
            assert (await get(store, f"{root}a")).value == largest

    run(main())


def test_same_key_twice_in_a_commit_is_refused(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            with pytest.raises(ValueError, match="changed twice"):
                await store.commit([], [Put(f"{root}a", b""), Delete(f"{root}a")])

    run(main())


def test_deleting_what_is_not_there_changes_nothing(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            before = (await store.list(root)).revision
            done = await store.commit([], [Delete(f"{root}a")])
            assert (done.succeeded, done.revision) == (True, before)

    run(main())


# ---------------------------------------------------------------- watches


def test_watch_begins_in_the_past_and_goes_on(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            first = await store.commit([], [Put(f"{root}a", b"1")])
            second = await store.commit([], [Put(f"{root}a", b"2")])
            async with aclosing(store.watch(root, first.revision)) as watch:
                events = await take(watch, 2)
                third = await store.commit([], [Delete(f"{root}a")])
                events += await take(watch, 1)
            assert events == [
                Changed(KeyValue(f"{root}a", b"1", first.revision, first.revision)),
                Changed(KeyValue(f"{root}a", b"2", first.revision, second.revision)),
                Deleted(f"{root}a", third.revision),
            ]

    run(main())


def test_watch_from_behind_a_snapshot_misses_nothing(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            await store.commit([], [Put(f"{root}a", b"1")])
            snapshot = await store.list(root)
            done = await store.commit([], [Put(f"{root}b", b"2")])
            async with aclosing(store.watch(root, snapshot.revision + 1)) as watch:
                assert by_revision(await take(watch, 1)) == [done.revision]

    run(main())


def test_events_of_one_transaction_come_together(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as writer, opened(backend) as reader:
            await writer.commit([], [Put(f"{root}old", b"")])
            start = (await reader.list(root)).revision + 1
            async with aclosing(reader.watch(root, start)) as watch:
                changes = [Put(f"{root}{n}", b"x" * 4000) for n in range(100)]
                done = await writer.commit([], [*changes, Delete(f"{root}old")])
                events = await soon(anext(watch))
            assert len(events) == 101
            assert set(by_revision(list(events))) == {done.revision}
            assert events[-1] == Deleted(f"{root}old", done.revision)

    run(main())


def test_watch_that_waits_is_told_at_once(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as writer, opened(backend) as reader:
            start = (await reader.list(root)).revision + 1
            async with aclosing(reader.watch(root, start)) as watch:
                waiting = asyncio.ensure_future(anext(watch))
                done, _ = await asyncio.wait({waiting}, timeout=0.1)
                assert not done
                await writer.commit([], [Put(f"{root}a", b"1")])
                assert len(await asyncio.wait_for(waiting, 1)) == 1

    run(main())


def test_watch_of_a_compacted_revision_ends(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            first = await store.commit([], [Put(f"{root}a", b"1")])
            last = await store.commit([], [Put(f"{root}a", b"2")])
            await backend.compact(last.revision)
            with pytest.raises(WatchEndedError, match="compacted"):
                await take(store.watch(root, first.revision), 1)
            async with aclosing(store.watch(root, last.revision + 1)) as watch:
                await store.commit([], [Put(f"{root}a", b"3")])
                assert len(await take(watch, 1)) == 1

    run(main())


def test_watch_without_a_start_or_a_prefix_is_a_bug(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            for prefix, revision in ((root, 0), ("", 1)):
                with pytest.raises(ValueError, match="watch"):
                    await anext(store.watch(prefix, revision))

    run(main())


def test_cancelled_reader_of_a_watch_is_cancelled(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            start = (await store.list(root)).revision + 1
            reader = asyncio.ensure_future(anext(store.watch(root, start)))
            await asyncio.wait({reader}, timeout=0.1)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await soon(reader)

    run(main())


def test_close_ends_watches_with_an_error(backend: Backend, root: str) -> None:
    async def main() -> None:
        store = await backend.connect()
        start = (await store.list(root)).revision + 1
        readers = [asyncio.ensure_future(anext(store.watch(root, start))) for _ in range(3)]
        await asyncio.wait(readers, timeout=0.1)
        await store.close()
        for reader in readers:
            with pytest.raises(WatchEndedError, match="closed"):
                await soon(reader)

    run(main())


def test_closed_store_says_so(backend: Backend, root: str) -> None:
    async def main() -> None:
        store = await backend.connect()
        await store.close()
        await store.close()
        with pytest.raises(StoreUnreachableError, match="closed"):
            await store.get(f"{root}a")
        with pytest.raises(WatchEndedError, match="closed"):
            await anext(store.watch(root, 1))

    run(main())


# ---------------------------------------------------------------- leases


def test_lease_of_a_dead_holder_ends_and_takes_its_keys_along(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as survivor:
            holder = await backend.connect()
            lease = await holder.lease(SHORT_TTL_S)
            keys = [f"{root}a", f"{root}b"]
            put = await holder.commit([], [Put(key, b"", lease=lease.id) for key in keys])
            async with aclosing(survivor.watch(root, put.revision + 1)) as watch:
                await holder.close()
                events = await take(watch, 2)
            assert sorted(e.key for e in events if isinstance(e, Deleted)) == keys
            assert len(set(by_revision(events))) == 1
            assert (await survivor.list(root)).items == ()

    run(main())


def test_lease_that_is_kept_outlives_its_ttl(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            lease = await store.lease(SHORT_TTL_S)
            await store.commit([], [Put(f"{root}a", b"", lease=lease.id)])
            ends_at = time.monotonic() + 2 * lease.ttl_s
            await until(lambda: time.monotonic() > ends_at)
            assert lease.alive
            assert await store.get(f"{root}a") is not None

    run(main())


def test_trust_in_a_lease_is_two_thirds_of_its_ttl_and_moves_on(backend: Backend) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            before = time.monotonic()
            lease = await store.lease(SHORT_TTL_S)
            first = lease.trusted_until
            assert lease.ttl_s >= SHORT_TTL_S
            assert before <= first - lease.ttl_s * 2 / 3 <= time.monotonic()
            await until(lambda: lease.trusted_until >= first + lease.ttl_s / 3)
            assert lease.trusted_until <= time.monotonic() + lease.ttl_s * 2 / 3

    run(main())


def test_lease_that_is_not_kept_is_not_trusted(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            lease = await store.lease(SHORT_TTL_S)
            await store.commit([], [Put(f"{root}a", b"", lease=lease.id)])
            start = (await store.list(root)).revision + 1
            lease.pause()
            await take(store.watch(root, start), 1)
            assert time.monotonic() > lease.trusted_until
            assert lease.alive, "nobody has told the holder yet"
            lease.resume()
            await soon(lease.lost())
            assert not lease.alive

    run(main())


def test_revoked_lease_takes_its_keys_along_at_once(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            lease = await store.lease(30)
            await store.commit([], [Put(f"{root}a", b"", lease=lease.id), Put(f"{root}b", b"")])
            await lease.revoke()
            assert [i.key for i in (await store.list(root)).items] == [f"{root}b"]
            assert not lease.alive
            assert lease.trusted_until <= time.monotonic()
            await soon(lease.lost())
            await lease.revoke()

    run(main())


def test_holder_learns_that_somebody_else_revoked_its_lease(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            lease = await store.lease(SHORT_TTL_S)
            lost = asyncio.ensure_future(lease.lost())
            await backend.revoke(lease.id)
            await soon(lost)
            assert not lease.alive
            assert lease.trusted_until <= time.monotonic()

    run(main())


def test_put_under_a_lease_that_is_gone_does_not_happen(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            lease = await store.lease(30)
            await backend.revoke(lease.id)
            done = await store.commit(
                [Absent(f"{root}a")], [Put(f"{root}b", b""), Put(f"{root}a", b"", lease=lease.id)]
            )
            assert not done.succeeded
            assert done.revision >= 1
            assert (await store.list(root)).items == ()

    run(main())


def test_put_without_a_lease_frees_a_key_from_it(backend: Backend, root: str) -> None:
    async def main() -> None:
        async with opened(backend) as store:
            lease = await store.lease(30)
            await store.commit([], [Put(f"{root}a", b"1", lease=lease.id)])
            await store.commit([], [Put(f"{root}a", b"2")])
            await lease.revoke()
            assert (await get(store, f"{root}a")).value == b"2"

    run(main())


def test_close_stops_keeping_leases(backend: Backend) -> None:
    async def main() -> None:
        store = await backend.connect()
        lease = await store.lease(30)
        await store.close()
        assert not lease.alive
        await soon(lease.lost())
        await lease.revoke()

    run(main())

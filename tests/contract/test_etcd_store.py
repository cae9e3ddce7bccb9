"""What only a real etcd can do to the store: be away, freeze, die, refuse."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbsched.errors import ConfigurationError, ConnectError, StoreUnreachableError
from nbsched.local.binaries import version_of
from nbsched.settings import Settings
from nbsched.storage import Absent, Commit, Put, WatchEndedError, etcd_endpoints
from nbsched.storage.etcd import EtcdStore
from nbsched.storage.etcd_calls import EtcdCalls, may_corrupt
from nbsched.storage.etcd_endpoints import open_endpoints
from support.etcd import EtcdServer
from support.serverprocess import free_ports

ROOT = "/nbsched/demo/"
KEY = f"{ROOT}a"
PASSWORD = "correct horse"
WITHIN_S = 60.0


def settings(*endpoints: str, **more: Any) -> Settings:
    defaults: dict[str, Any] = {"namespace": "demo", "local": True}
    return Settings(etcd=endpoints, **{**defaults, **more})


@contextlib.asynccontextmanager
async def connected(*endpoints: str, **more: Any) -> AsyncIterator[EtcdStore]:
    store = await EtcdStore.connect(settings(*endpoints, **more))
    try:
        yield store
    finally:
        await store.close()


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 120))


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.01)


@pytest.fixture
def closed_port() -> str:
    """An address where nobody listens."""
    return f"127.0.0.1:{free_ports(1)[0]}"


@pytest.fixture
def black_hole() -> Iterator[str]:
    """An address that takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def guarded_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """An etcd with authentication on, whose tokens end after a second."""
    server = EtcdServer(tmp_path / "guarded", "--auth-token-ttl", "1")
    server.start()
    try:
        server.turn_authentication_on(PASSWORD)
        yield server
    finally:
        server.kill()


# ---------------------------------------------------------------- nobody there


@pytest.mark.parametrize("kind", ["closed_port", "black_hole"])
def test_server_that_does_not_answer_is_an_error_in_time(
    kind: str, request: pytest.FixtureRequest
) -> None:
    address = request.getfixturevalue(kind)

    async def main() -> None:
        before = time.monotonic()
        with pytest.raises(StoreUnreachableError, match="NBSCHED_ETCD") as caught:
            await EtcdStore.connect(settings(address, connect_timeout_s=0.5))
        assert time.monotonic() - before < 10
        assert address in str(caught.value)

    run(main())


def test_refused_connection_is_named_as_the_cause(closed_port: str) -> None:
    async def main() -> None:
        with pytest.raises(StoreUnreachableError, match="Connection refused"):
            await EtcdStore.connect(settings(closed_port, connect_timeout_s=0.3))

    run(main())


@pytest.mark.parametrize("kind", ["closed_port", "black_hole"])
def test_dead_first_endpoint_leaves_the_second_to_be_used(
    kind: str, request: pytest.FixtureRequest, etcd_server: EtcdServer
) -> None:
    dead = request.getfixturevalue(kind)

    async def main() -> None:
        async with connected(dead, etcd_server.endpoint, connect_timeout_s=2.0) as store:
            before = time.monotonic()
            assert await store.get(KEY) is None
            assert time.monotonic() - before < 0.9, "the dead endpoint was tried again"

    run(main())


def test_server_that_starts_while_we_wait_is_used(private_etcd: EtcdServer) -> None:
    private_etcd.kill()

    async def main() -> None:
        connecting = asyncio.ensure_future(
            EtcdStore.connect(settings(private_etcd.endpoint, connect_timeout_s=WITHIN_S))
        )
        await asyncio.wait({connecting}, timeout=0.2)
        private_etcd.start()
        await (await connecting).close()

    run(main())


def test_closing_ends_a_call_that_waits(private_etcd: EtcdServer) -> None:
    async def main() -> None:
        store = await EtcdStore.connect(settings(private_etcd.endpoint, connect_timeout_s=30))
        private_etcd.freeze()
        waiting = asyncio.ensure_future(store.get(KEY))
        await asyncio.wait({waiting}, timeout=0.1)
        await store.close()
        with pytest.raises(StoreUnreachableError, match="closed"):
            await waiting

    run(main())


def test_cancelling_a_call_that_waits_cancels_it(private_etcd: EtcdServer) -> None:
    async def main() -> None:
        async with connected(private_etcd.endpoint, connect_timeout_s=30) as store:
            private_etcd.freeze()
            waiting = asyncio.ensure_future(store.get(KEY))
            await asyncio.wait({waiting}, timeout=0.1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            private_etcd.thaw()
            assert await store.get(KEY) is None

    run(main())


# ---------------------------------------------------------------- dying and coming back


def test_killed_server_ends_watches_and_is_used_again_when_it_is_back(
    private_etcd: EtcdServer,
) -> None:
    async def main() -> None:
        async with connected(private_etcd.endpoint, connect_timeout_s=WITHIN_S) as store:
            done = await store.commit([], [Put(KEY, b"1")])
            watch = store.watch(ROOT, done.revision)
            await anext(watch)
            private_etcd.kill()
            with pytest.raises(WatchEndedError, match=private_etcd.endpoint):
                await asyncio.wait_for(anext(watch), WITHIN_S)
            private_etcd.start()
            snapshot = await store.list(ROOT)
            assert [item.value for item in snapshot.items] == [b"1"]
            watch = store.watch(ROOT, snapshot.revision + 1)
            await store.commit([], [Put(KEY, b"2")])
            assert len(await asyncio.wait_for(anext(watch), WITHIN_S)) == 1

    run(main())


def test_watch_on_a_server_that_does_not_answer_ends(closed_port: str, black_hole: str) -> None:
    async def main() -> None:
        for address in (closed_port, black_hole):
            opened = settings(address, connect_timeout_s=0.3)
            store = EtcdStore(EtcdCalls(opened, open_endpoints(opened)))
            with pytest.raises(WatchEndedError, match=r"no answer|refused"):
                await asyncio.wait_for(anext(store.watch(ROOT, 1)), 2)
            await store.close()

    run(main())


def test_watch_moves_on_when_its_server_is_gone(
    private_etcd: EtcdServer, etcd_server: EtcdServer
) -> None:
    both = (private_etcd.endpoint, etcd_server.endpoint)

    async def main() -> None:
        async with connected(etcd_server.endpoint) as other:
            start = (await other.list(ROOT)).revision + 1
        async with connected(*both, connect_timeout_s=2.0) as store:
            private_etcd.kill()
            with pytest.raises(WatchEndedError, match=private_etcd.endpoint):
                await anext(store.watch(ROOT, start))
            watch = store.watch(ROOT, start)
            await store.commit([], [Put(KEY, b"")])
            assert await asyncio.wait_for(anext(watch), WITHIN_S)

    run(main())


def test_frozen_server_ends_watches(
    private_etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_endpoints, "_KEEPALIVE_S", 1)
    monkeypatch.setattr(etcd_endpoints, "_KEEPALIVE_TIMEOUT_S", 1)

    async def main() -> None:
        async with connected(private_etcd.endpoint) as store:
            done = await store.commit([], [Put(KEY, b"")])
            watch = store.watch(ROOT, done.revision)
            await anext(watch)
            private_etcd.freeze()
            with pytest.raises(WatchEndedError, match=private_etcd.endpoint):
                await asyncio.wait_for(anext(watch), WITHIN_S)

    run(main())


def test_frozen_server_is_left_for_another(
    private_etcd: EtcdServer, etcd_server: EtcdServer
) -> None:
    both = (private_etcd.endpoint, etcd_server.endpoint)

    async def main() -> None:
        async with connected(*both, connect_timeout_s=2.0) as store:
            await store.commit([], [Put(KEY, b"on the first")])
            private_etcd.freeze()
            item = await store.get(KEY)
            assert item is None or item.value != b"on the first"

    run(main())


def test_guarded_commit_that_broke_off_is_not_repeated(
    private_etcd: EtcdServer, etcd_server: EtcdServer
) -> None:
    both = (private_etcd.endpoint, etcd_server.endpoint)

    async def main() -> None:
        key = f"{ROOT}only-once"
        async with connected(*both, connect_timeout_s=2.0) as store:
            private_etcd.freeze()
            with pytest.raises(StoreUnreachableError, match="Read its keys again"):
                await store.commit([Absent(key)], [Put(key, b"")])
            assert await store.get(key) is None, "it was sent to the other server as well"

    run(main())


def test_guarded_commit_is_repeated_when_it_cannot_have_arrived(
    private_etcd: EtcdServer, etcd_server: EtcdServer
) -> None:
    both = (private_etcd.endpoint, etcd_server.endpoint)

    async def main() -> None:
        key = f"{ROOT}elsewhere"
        async with connected(*both, connect_timeout_s=2.0) as store:
            private_etcd.kill()
            await until(lambda: not store._calls.current.connected)
            done = await store.commit([Absent(key)], [Put(key, b"")])
            assert done.succeeded
            assert await store.get(key) is not None

    run(main())


def test_lease_without_a_server_counts_as_lost_after_its_ttl(private_etcd: EtcdServer) -> None:
    async def main() -> None:
        async with connected(private_etcd.endpoint) as store:
            lease = await store.lease(1)
            private_etcd.kill()
            before = time.monotonic()
            await asyncio.wait_for(lease.lost(), WITHIN_S)
            assert time.monotonic() - before < 10
            assert not lease.alive
            await lease.revoke()

    run(main())


def test_lease_outlives_a_restart_of_the_server(private_etcd: EtcdServer) -> None:
    async def main() -> None:
        async with connected(private_etcd.endpoint) as store:
            lease = await store.lease(5)
            await store.commit([], [Put(KEY, b"", lease=lease.id)])
            private_etcd.restart()
            trusted = lease.trusted_until
            await until(lambda: lease.trusted_until > trusted)
            assert lease.alive
            assert await store.get(KEY) is not None

    run(main())


def test_put_under_a_vanished_lease_tells_its_holder_at_once(etcd_server: EtcdServer) -> None:
    async def main() -> None:
        async with connected(etcd_server.endpoint) as store:
            lease = await store.lease(30)
            etcd_server.revoke_lease(lease.id)
            done = await store.commit([], [Put(KEY, b"", lease=lease.id)])
            assert not done.succeeded
            assert not lease.alive

    run(main())


# ---------------------------------------------------------------- users


def test_right_password_opens_everything(guarded_etcd: EtcdServer) -> None:
    async def main() -> None:
        user = {"etcd_user": "root", "etcd_password": PASSWORD}
        async with connected(guarded_etcd.endpoint, **user) as store:
            lease = await store.lease(1)
            done = await store.commit([], [Put(KEY, b"1", lease=lease.id)])
            assert await anext(store.watch(ROOT, done.revision))
            await lease.revoke()
            assert (await store.list(ROOT)).items == ()

    run(main())


def test_tokens_that_ended_are_renewed(guarded_etcd: EtcdServer) -> None:
    async def main() -> None:
        user = {"etcd_user": "root", "etcd_password": PASSWORD, "connect_timeout_s": 5.0}
        async with connected(guarded_etcd.endpoint, **user) as store:
            for key in (KEY, f"{ROOT}b"):
                guarded_etcd.restart()  # tokens live in the server's memory
                done = await store.commit([Absent(key)], [Put(key, b"1")])
                assert done.succeeded
            guarded_etcd.restart()
            deadline = time.monotonic() + WITHIN_S
            while time.monotonic() < deadline:
                # The broken connection may show first, and more than once; then the token.
                with contextlib.suppress(WatchEndedError):
                    assert await asyncio.wait_for(anext(store.watch(ROOT, done.revision)), 5)
                    return
                await asyncio.sleep(0.02)
            pytest.fail("the watch never logged in again")

    run(main())


@pytest.mark.parametrize("password", ["wrong", " "])
def test_wrong_password_is_named(guarded_etcd: EtcdServer, password: str) -> None:
    async def main() -> None:
        with pytest.raises(ConnectError, match="NBSCHED_ETCD_PASSWORD") as caught:
            await EtcdStore.connect(
                settings(guarded_etcd.endpoint, etcd_user="root", etcd_password=password)
            )
        assert "'root'" in str(caught.value)
        assert not isinstance(caught.value, StoreUnreachableError)

    run(main())


def test_missing_user_is_named(guarded_etcd: EtcdServer) -> None:
    async def main() -> None:
        with pytest.raises(ConfigurationError, match="asks for a user"):
            await EtcdStore.connect(settings(guarded_etcd.endpoint))

    run(main())


def test_user_where_the_server_has_none_is_named(etcd_server: EtcdServer) -> None:
    async def main() -> None:
        with pytest.raises(ConfigurationError, match="authentication turned off"):
            await EtcdStore.connect(
                settings(etcd_server.endpoint, etcd_user="root", etcd_password=PASSWORD)
            )

    run(main())


# ---------------------------------------------------------------- versions and settings


def test_version_that_can_lose_data_is_refused_unless_local(etcd_server: EtcdServer) -> None:
    version = version_of(etcd_server.binary)
    assert version is not None
    if not may_corrupt("{}.{}.{}".format(*version)):
        pytest.skip(f"the etcd of this machine is {version}, a sound one")

    async def main() -> None:
        with pytest.raises(ConnectError, match=r"version 3\.5\.[012].*Upgrade"):
            await EtcdStore.connect(settings(etcd_server.endpoint, local=False))
        await (await EtcdStore.connect(settings(etcd_server.endpoint, local=True))).close()

    run(main())


def test_versions_that_can_lose_data_are_known() -> None:
    refused = ["3.5.0", "3.5.1", "3.5.2", "3.5.0-rc.1"]
    fine = ["3.4.18", "3.5.3", "3.5.21", "3.6.0", "unknown"]
    assert [v for v in refused + fine if may_corrupt(v)] == refused


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"etcd": ()}, "No etcd server"),
        ({"etcd": ("unix:///tmp/x",)}, "not an etcd server"),
        ({"etcd": ("host:port",)}, "not an etcd server"),
        ({"etcd": ("host:0",)}, "not an etcd server"),
        ({"etcd": ("http://host:1/path",)}, "not an etcd server"),
        ({"etcd": ("http://host:1",), "etcd_ca": "ca.pem"}, "https://"),
        ({"etcd": ("host:1",), "etcd_user": "me"}, "NBSCHED_ETCD_PASSWORD"),
        ({"etcd": ("host:1",), "etcd_key": "key.pem"}, "without etcd_cert"),
        ({"etcd": ("host:1",), "etcd_ca": "/no/such/ca.pem"}, "NBSCHED_ETCD_CA"),
    ],
)
def test_wrong_setting_is_named(wrong: dict[str, Any], text: str) -> None:
    async def main() -> None:
        with pytest.raises(ConfigurationError, match=text):
            await EtcdStore.connect(Settings(**wrong))

    run(main())


def test_endpoints_may_be_written_in_all_usual_ways(etcd_server: EtcdServer) -> None:
    async def main() -> None:
        port = etcd_server.endpoint.partition(":")[2]
        for text in (f"http://127.0.0.1:{port}/", f" localhost:{port} "):
            async with connected(text) as store:
                assert await store.commit([], []) == Commit(True, (await store.list("/")).revision)

    run(main())


def test_tls_is_used_when_a_certificate_or_https_asks_for_it(tmp_path: Path) -> None:
    server = EtcdServer(tmp_path / "tls", "--auto-tls", tls=True)
    server.start()
    try:

        async def main() -> None:
            certificate = str(server.certificate)
            async with connected(server.endpoint, etcd_ca=certificate) as store:
                assert (await store.commit([], [Put(KEY, b"1")])).succeeded
            with pytest.raises(StoreUnreachableError):  # nobody vouches for its certificate
                await EtcdStore.connect(
                    settings(f"https://{server.endpoint}", connect_timeout_s=0.5)
                )
            with pytest.raises(StoreUnreachableError):
                await EtcdStore.connect(settings(server.endpoint, connect_timeout_s=0.5))

        run(main())
    finally:
        server.kill()

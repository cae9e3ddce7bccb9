"""What every bus must do with logs, in memory and on NATS."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import aclosing

import pytest

from nbsched.errors import BusUnreachableError
from nbsched.transport import LogEntry, LogLostError
from support.buses import Place, place, replay, run, take

__all__ = ["place"]


def test_append_returns_growing_sequence_numbers(place: Place) -> None:
    async def test() -> None:
        async with place.bus_with_log() as bus:
            numbers = [await bus.append(place.subject("a"), b"h", b"d") for _ in range(5)]
            assert numbers == [1, 2, 3, 4, 5]
            assert await bus.last_sequence(place.log) == 5

    run(test())


def test_concurrent_appends_are_stored_in_the_order_of_the_calls(place: Place) -> None:
    async def test() -> None:
        async with place.bus_with_log() as bus:
            appends = (bus.append(place.subject("a"), b"h", b"d") for _ in range(3000))
            assert await asyncio.gather(*appends) == list(range(1, 3001))

    run(test())


def test_a_log_is_read_from_its_start_with_headers_and_data(place: Place) -> None:
    async def test() -> None:
        async with place.bus_with_log() as bus:
            header = bytes(range(256))
            await bus.append(place.subject("a"), header, b"data\r\n\x00")
            await bus.append(place.subject("b.c"), b"", b"")
            async with aclosing(bus.read(place.log, place.subject(">"))) as reader:
                assert await take(reader, 2) == [
                    LogEntry(place.subject("a"), 1, header, b"data\r\n\x00"),
                    LogEntry(place.subject("b.c"), 2, b"", b""),
                ]

    run(test())


def test_a_log_is_read_behind_a_sequence_number(place: Place) -> None:
    async def test() -> None:
        async with place.bus_with_log() as bus:
            await place.fill(bus, 10)
            async with aclosing(bus.read(place.log, place.subject(">"), after=7)) as reader:
                assert [entry.sequence for entry in await take(reader, 3)] == [8, 9, 10]

    run(test())


def test_a_position_behind_the_end_of_a_log_was_in_one_that_is_lost(place: Place) -> None:
    async def test() -> None:
        async with place.bus_with_log() as bus:
            await place.fill(bus, 3)
            async with aclosing(bus.read(place.log, place.subject(">"), after=4)) as reader:
                with pytest.raises(LogLostError, match="up to 4 and ends at 3"):
                    await take(reader, 1)
            async with aclosing(bus.read(place.log, place.subject(">"), after=3)) as reader:
                reading = asyncio.ensure_future(take(reader, 1))
                await place.fill(bus, 1)
                assert [entry.sequence for entry in await reading] == [4]

    run(test())


def test_a_reader_of_headers_gets_no_data(place: Place) -> None:
    async def test() -> None:
        async with place.bus_with_log() as bus:
            await place.fill(bus, 2)
            reading = bus.read(place.log, place.subject("a"), headers_only=True)
            async with aclosing(reading) as reader:
                entries = await take(reader, 2)
                assert [(e.header, e.data) for e in entries] == [(b"h0", b""), (b"h1", b"")]

    run(test())


def test_a_reader_gets_what_is_appended_later(place: Place) -> None:
    async def test() -> None:
        async with (
            place.bus_with_log() as bus,
            place.bus() as other,
            aclosing(bus.read(place.log, place.subject("a"))) as reader,
        ):
            for i in range(20):
                reading = asyncio.ensure_future(take(reader, 1))
                await other.append(place.subject("a"), b"h", b"%d" % i)
                assert [entry.data for entry in await reading] == [b"%d" % i]

    run(test())


def test_a_reader_gets_only_what_matches(place: Place) -> None:
    async def test() -> None:
        async with place.bus_with_log() as bus:
            for name in ("x.1", "y.1", "x.2", "x.2.3", "x"):
                await bus.append(place.subject(name), b"h", name.encode())
            async with aclosing(bus.read(place.log, place.subject("x.*"))) as reader:
                assert [entry.data for entry in await take(reader, 2)] == [b"x.1", b"x.2"]
            async with aclosing(bus.read(place.log, place.subject("x.>"))) as reader:
                assert [entry.sequence for entry in await take(reader, 3)] == [1, 3, 4]

    run(test())


def test_readers_do_not_disturb_each_other(place: Place) -> None:
    async def test() -> None:
        async with place.bus_with_log() as bus:
            await place.fill(bus, 5)
            async with aclosing(bus.read(place.log, place.subject("a"))) as first:
                assert len(await take(first, 5)) == 5
                async with aclosing(bus.read(place.log, place.subject("a"))) as second:
                    assert len(await take(second, 5)) == 5
                await bus.append(place.subject("a"), b"h", b"for the first")
                assert [entry.data for entry in await take(first, 1)] == [b"for the first"]

    run(test())


def test_five_thousand_entries_arrive_in_order_without_a_gap(place: Place) -> None:
    async def test() -> None:
        async with place.bus_with_log() as bus:
            await place.fill(bus, 2500)
            async with aclosing(bus.read(place.log, place.subject("a"))) as reader:
                filling = asyncio.ensure_future(place.fill(bus, 2500))
                entries = await take(reader, 5000)
                await filling
            assert [entry.sequence for entry in entries] == list(range(1, 5001))
            assert [entry.data for entry in entries] == [b"d%d" % (i % 2500) for i in range(5000)]

    run(test())


def test_large_entries_arrive_whole_and_in_order(place: Place) -> None:
    async def test() -> None:
        async with place.bus_with_log() as bus:
            bodies = [bytes([i]) * 700 * 1024 for i in range(50)]
            async with aclosing(bus.read(place.log, place.subject("a"))) as reader:
                appends = (bus.append(place.subject("a"), b"h", body) for body in bodies)
                appending = asyncio.gather(*appends)
                entries = await take(reader, 50)
                assert await appending == [entry.sequence for entry in entries]
            assert [entry.data for entry in entries] == bodies

    run(test())


def test_replay_ends_with_what_the_log_holds(place: Place) -> None:
    async def test() -> None:
        async with place.bus_with_log() as bus:
            assert await replay(bus, place.log, place.subject("a")) == []
            await place.fill(bus, 3000)
            await bus.append(place.subject("b"), b"another subject", b"d")
            found = await replay(bus, place.log, place.subject("a"))
            assert [entry.header for entry in found] == [b"h%d" % i for i in range(3000)]
            assert {entry.data for entry in found} == {b""}
            assert await replay(bus, place.log, place.subject("none")) == []

    run(test())


def test_the_last_entry_of_a_subject_is_found(place: Place) -> None:
    async def test() -> None:
        async with place.bus_with_log() as bus:
            await place.fill(bus, 3)
            await place.fill(bus, 1, name="b")
            last = LogEntry(place.subject("a"), 3, b"h2", b"d2")
            assert await bus.last_of(place.log, place.subject("a")) == last
            assert await bus.last_of(place.log, place.subject("none")) is None

    run(test())


def test_purging_removes_what_matches_and_keeps_the_numbers(place: Place) -> None:
    async def test() -> None:
        async with place.bus_with_log() as bus:
            await place.fill(bus, 3, name="a.x")
            await place.fill(bus, 2, name="b.x")
            await bus.purge(place.log, place.subject("a.>"))
            assert await bus.last_of(place.log, place.subject("a.x")) is None
            assert await bus.last_sequence(place.log) == 5
            async with aclosing(bus.read(place.log, place.subject(">"))) as reader:
                assert [entry.sequence for entry in await take(reader, 2)] == [4, 5]
            assert await bus.append(place.subject("a.x"), b"h", b"d") == 6

    run(test())


def test_a_new_log_is_empty(place: Place) -> None:
    async def test() -> None:
        async with place.bus_with_log() as bus:
            assert await bus.last_sequence(place.log) == 0

    run(test())


def test_a_log_can_be_ensured_by_several_at_once_and_again(place: Place) -> None:
    async def test() -> None:
        async with place.bus() as first, place.bus() as second:
            subjects = f"{place.prefix}.log.>"
            ensuring = (bus.ensure_log(place.log, subjects) for bus in (first, second) * 3)
            await asyncio.gather(*ensuring)
            await first.append(place.subject("a"), b"h", b"d")
            await second.ensure_log(place.log, subjects)
            assert await second.last_sequence(place.log) == 1

    run(test())


def test_append_and_read_wait_for_a_log_that_does_not_exist_yet(place: Place) -> None:
    async def test() -> None:
        async with (
            place.bus() as bus,
            place.bus() as other,
            aclosing(bus.read(place.log, place.subject("a"))) as reader,
        ):
            reading = asyncio.ensure_future(take(reader, 1))
            appending = asyncio.ensure_future(bus.append(place.subject("a"), b"h", b"d"))
            await asyncio.wait({reading, appending}, timeout=0.05)
            assert not reading.done()
            assert not appending.done()
            with pytest.raises(BusUnreachableError, match="does not exist"):
                await bus.last_sequence(place.log)
            await other.ensure_log(place.log, f"{place.prefix}.log.>")
            assert await appending == 1
            assert [entry.sequence for entry in await reading] == [1]

    run(test())


def test_closing_the_bus_ends_what_waits(place: Place) -> None:
    async def test() -> None:
        async with place.bus_with_log() as bus:
            reading = asyncio.ensure_future(take(bus.read(place.log, place.subject("a")), 1))
            appending = asyncio.ensure_future(bus.append("no.log.takes.this", b"h", b"d"))
            await asyncio.wait({reading, appending}, timeout=0.05)
            await bus.close()
            for waiting in (reading, appending):
                with pytest.raises(BusUnreachableError):
                    await waiting
            with pytest.raises(BusUnreachableError):
                await bus.publish("x", b"")
            with pytest.raises(BusUnreachableError):
                await bus.append(place.subject("a"), b"h", b"d")

    run(test())


def test_a_cancelled_reader_and_a_cancelled_append_let_go_at_once(place: Place) -> None:
    async def test() -> None:
        async with place.bus_with_log() as bus:
            reading = asyncio.ensure_future(take(bus.read(place.log, place.subject("a")), 1))
            appending = asyncio.ensure_future(bus.append("no.log.takes.this", b"h", b"d"))
            await asyncio.wait({reading, appending}, timeout=0.05)
            for waiting in (reading, appending):
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await waiting
                assert waiting.cancelled()
            assert await bus.append(place.subject("a"), b"h", b"d") == 1

    run(test())


def test_the_subjects_that_have_entries_are_known(place: Place) -> None:
    async def test() -> None:
        async with place.bus_with_log() as bus:
            for name in ("a.1", "a.2", "b.1"):
                await place.fill(bus, 3, name)
            names = {place.subject(name) for name in ("a.1", "a.2")}
            assert await bus.subjects(place.log, place.subject("a.*")) == names
            await bus.purge(place.log, place.subject("a.1"))
            await bus.purge(place.log, place.subject("b.>"))
            assert await bus.subjects(place.log, place.subject(">")) == {place.subject("a.2")}
            assert await bus.subjects(place.log, place.subject("c")) == set()

    run(test())

"""What a worker answers to the leader, what it reports, and how it ends."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from nbsched import messages
from nbsched.messages import (
    Accepted,
    AskReport,
    ForgetJob,
    Held,
    OutcomeState,
    Recalled,
    RecallTasks,
    Refused,
    RunSlice,
)
from nbsched.model import TaskRange, Term
from nbsched.payload.envelope import Key, Kind
from nbsched.wire import Wire
from nbsched.worker import reporter
from support.workerbench import Bench, Job, bench, run, true

OK, FAILED, CANCELLED, RETRY = OutcomeState


def sleeper(gate: Path) -> Any:
    """A task that runs until a file exists."""

    def wait(x: int) -> int:
        while not gate.exists():
            time.sleep(0.005)
        return x

    return wait


def slice_of(b: Bench, job: Job, seq: int, term: int, start: int = 0, stop: int = 1) -> RunSlice:
    return RunSlice(Term(term), seq, job.brief, start, stop, inline=job.inline)


def test_a_command_of_an_older_term_is_refused_and_a_newer_one_adopted() -> None:
    async def scenario() -> None:
        async with bench() as b:
            job = b.job(lambda x: x, range(3))
            assert await b.command(slice_of(b, job, 1, 7)) == Accepted(1)
            assert await b.command(slice_of(b, job, 1, 8, 1, 2)) == Accepted(1)
            answer = await b.command(slice_of(b, job, 2, 7, 2, 3))
            assert isinstance(answer, Refused)
            assert answer.term == 8
            b.service.observe_term(Term(9))
            assert isinstance(await b.command(AskReport(Term(8))), Refused)
            await true(lambda: b.done(job) == 2)
            assert (b.report().term, b.report().seq) == (9, 0)

    run(scenario())


def test_a_slice_for_an_earlier_registration_is_not_held() -> None:
    """It was on its way for long, and its tasks are given to others, or cancelled."""

    async def scenario() -> None:
        async with bench() as b:
            job = b.job(lambda x: x, range(3))
            b.service.registered(10)
            assert await b.run(job, 0, 1, joined=9) == Accepted(1)
            assert b.report().held == ()
            assert b.report().seq == 1
            assert await b.run(job, 1, 2, joined=10) == Accepted(2)
            await true(lambda: b.done(job) == 1)
            # A leader can know of a registration before the worker does.
            assert await b.run(job, 2, 3, joined=11) == Accepted(3)
            await true(lambda: b.done(job) == 2)

    run(scenario())


def test_a_slice_that_comes_twice_runs_once() -> None:
    async def scenario() -> None:
        async with bench() as b:
            job = b.job(lambda x: x, range(3))
            command = slice_of(b, job, 1, 7, 0, 3)
            assert await b.command(command) == Accepted(1)
            assert await b.command(command) == Accepted(1)
            await b.command(slice_of(b, job, 2, 7, 1, 3))  # another slice, the same tasks
            await b.ended(job)
            await true(lambda: not b.service.busy)
            b.read_log()
            assert len(job.results[0]) == 1
            assert b.report().seq == 2

    run(scenario())


def test_bytes_that_nobody_has_signed_are_ignored() -> None:
    async def scenario() -> None:
        async with bench() as b:
            forged = Wire(Key.generate(), b.names).seal(Kind.COMMAND, AskReport(Term(99)))
            for data in (b"", b"garbage" * 50, forged):
                await b.bus.publish(b.names.to_worker(b.id), data, "nobody")
            assert b.report().term == 0
            assert await b.command(AskReport(b.term)) == Accepted()

    run(scenario())


def test_recall_gives_back_what_no_kernel_was_given(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench() as b:
            job = b.job(sleeper(tmp_path / "gate"), range(10))
            await b.run(job)
            await b.running(job)
            ranges = (TaskRange(0, 10),)
            answer = await b.command(RecallTasks(b.term, job.brief.job, ranges))
            assert answer == Recalled(job.brief.job, (TaskRange(1, 10),))
            assert [(h.start, h.stop) for h in b.report().held] == [(0, 1)]
            (tmp_path / "gate").touch()
            await true(lambda: b.done(job) == 1)
            await true(lambda: not b.service.busy)

    run(scenario())


def test_a_task_does_not_begin_while_an_earlier_attempt_of_it_runs_here(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(cpus=3) as b:
            job = b.job(sleeper(tmp_path / "gate"), range(2))
            await b.run(job, 0, 1)
            await b.running(job)
            await b.run(job, 0, 1, attempt=2)  # its other run was told to stop, and has not yet
            await b.run(job, 1, 2, attempt=2)
            await b.running(job, 2)
            running = [h for h in b.report().held if h.running_for_s is not None]
            assert sorted((h.start, h.attempt) for h in running) == [(0, 1), (1, 2)]
            (tmp_path / "gate").touch()
            await true(lambda: b.done(job) == 2 and len(job.results[0]) == 2)
            assert [result.outcome.attempt for result in job.results[0]] == [1, 2]

    run(scenario())


def test_one_task_of_an_earlier_round_does_not_hold_up_its_neighbours(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(cpus=2) as b:
            job = b.job(sleeper(tmp_path / "gate"), range(10))
            await b.run(job, 5, 6)
            await b.running(job)
            await b.run(job, 0, 10, round=1)
            await b.running(job, 2)
            (tmp_path / "gate").touch()
            await b.ended(job)
            await true(lambda: not b.report().held)
            assert [result.outcome.round for result in job.results[5]] == [0, 1]

    run(scenario())


def test_a_cancel_is_told_when_nothing_of_the_task_runs_any_more(tmp_path: Path) -> None:
    def tidy(_: int) -> None:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            while not (tmp_path / "gate").exists():
                time.sleep(0.005)
            raise

    async def scenario() -> None:
        async with bench(cpus=2) as b:
            job = b.job(tidy, range(1))
            await b.run(job, 0, 1)
            await b.running(job)
            await b.run(job, 0, 1, attempt=2)
            await b.stop(job, 0, 1, grace_s=20.0)
            assert b.done(job) == 0
            (tmp_path / "gate").touch()
            await b.ended(job)
            assert not [h for h in b.report().held if h.running_for_s is not None]
            assert [result.outcome.state for result in job.results[0]] == [OutcomeState.CANCELLED]

    run(scenario())


def test_a_kernel_keeps_nothing_of_a_job_that_was_forgotten_while_it_ran(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench() as b:
            job = b.job(sleeper(tmp_path / "gate"))
            await b.run(job)
            await b.running(job)
            await b.command(ForgetJob(b.term, job.brief.job))
            slot = b.service._pool._slots[0]
            assert job.brief.job in slot._jobs
            (tmp_path / "gate").touch()
            await b.ended(job)
            await true(lambda: not slot._jobs)

    run(scenario())


def test_the_report_names_running_and_waiting_tasks(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(cpus=2) as b:
            job = b.job(sleeper(tmp_path / "gate"), range(100))
            await b.run(job)
            await b.running(job, 2)
            held = b.report().held
            running = [h for h in held if h.running_for_s is not None]
            waiting = [h for h in held if h.running_for_s is None]
            assert [(h.start, h.stop) for h in running] == [(0, 1), (1, 2)]
            assert waiting == [Held(job.brief.job, 2, 100, 0, 1)]
            assert b.report().free_slots == 0
            (tmp_path / "gate").touch()
            await b.ended(job)
            await true(lambda: not b.report().held)
            assert b.report().results_seq == len(b.bus.log)
            assert b.report().free_slots == 2

    run(scenario())


def test_a_task_that_starts_after_idleness_is_reported_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with bench() as b:
            job = b.job(sleeper(tmp_path / "gate"))
            await true(lambda: b.reported())
            with monkeypatch.context() as patch:
                patch.setattr(reporter, "_INTERVAL_S", 3600.0)  # a report that waits its turn
                patch.setattr(reporter, "_HEARTBEAT_S", 3600.0)
                await b.run(job)
                await true(lambda: any(report.held for report in b.reported()))
            (tmp_path / "gate").touch()
            await true(lambda: b.reported()[-1].held == ())

    run(scenario())


def test_reports_are_at_most_five_a_second_under_load() -> None:
    async def scenario() -> None:
        async with bench(cpus=2) as b:
            started = time.monotonic()
            await b.finish(b.job(lambda x: time.sleep(0.001), range(600)))
            seconds = time.monotonic() - started
            assert len(b.reported()) <= 5 * seconds + 4

    run(scenario())


def test_asking_brings_a_report() -> None:
    async def scenario() -> None:
        async with bench() as b:
            await true(lambda: b.reported())
            count = len(b.reported())
            await b.command(AskReport(b.term))
            assert len(b.reported()) > count
            assert b.reported()[-1].term == b.term

    run(scenario())


def test_a_worker_without_cpus_refuses_slices() -> None:
    async def scenario() -> None:
        async with bench(cpus=0) as b:
            answer = await b.run(b.job(lambda x: x))
            assert isinstance(answer, Refused)
            assert "cpus=0" in answer.reason
            assert b.service.kernel_pids() == []

    run(scenario())


def test_a_full_log_pauses_work_and_loses_nothing() -> None:
    async def scenario() -> None:
        async with bench() as b:
            b.bus.full = True
            job = b.job(lambda x: x, range(200))
            await b.run(job)
            await true(lambda: b.service._results.full)
            other = b.job(lambda x: x, range(3))
            await b.run(other)
            assert b.done(job) == b.done(other) == 0
            assert sum(h.stop - h.start for h in b.report().held) == 203
            b.bus.full = False
            await b.ended(job)
            await b.ended(other)
            assert job.values() == list(range(200))

    run(scenario())


def test_outcomes_gather_while_appends_are_in_flight() -> None:
    async def scenario() -> None:
        async with bench() as b:
            b.bus.slow_s = 0.02
            job = await b.finish(b.job(lambda x: time.sleep(0.001), range(300)))
            assert all(len(results) == 1 for results in job.results.values())
            assert len(b.bus.log) < 120

    run(scenario())


def test_a_small_job_does_not_wait_for_a_large_one() -> None:
    async def scenario() -> None:
        async with bench() as b:
            large = b.job(lambda x: time.sleep(0.002), range(3000))
            await b.run(large)
            await true(lambda: b.done(large) > 20)
            small = await b.finish(b.job(lambda x: x))
            assert small.values() == [0]
            assert b.done(large) < 1000

    run(scenario())


def test_a_wide_task_takes_its_slots_and_is_not_starved(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench(cpus=2) as b:
            narrow = b.job(lambda x: time.sleep(0.005), range(400))
            await b.run(narrow)
            await true(lambda: b.done(narrow) > 4)
            wide = b.job(sleeper(tmp_path / "gate"), cpus=2)
            await b.run(wide)
            await b.running(wide)
            assert b.report().free_slots == 0
            assert [h.job for h in b.report().held if h.running_for_s is not None] == [
                wide.brief.job
            ]
            (tmp_path / "gate").touch()
            await b.ended(wide)
            await b.ended(narrow)

    run(scenario())


def test_draining_finishes_what_runs_and_hands_back_the_rest(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench() as b:
            gate = tmp_path / "gate"
            job = b.job(sleeper(gate), range(10), chunksize=5)
            await b.run(job)
            await b.running(job)
            draining = asyncio.create_task(b.service.drain(10))
            await true(lambda: b.reported()[-1].draining and len(b.report().held) == 1)
            assert [(h.start, h.stop) for h in b.report().held] == [(0, 1)]
            assert isinstance(await b.run(job), Refused)
            assert not draining.done()
            gate.touch()
            await draining
            assert b.done(job) == 1
            assert not b.service.busy

    run(scenario())


def test_draining_ends_when_its_time_is_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench() as b:
            job = b.job(sleeper(tmp_path / "gate"))
            await b.run(job)
            await b.running(job)
            await b.service.drain(0.05)
            assert b.service.busy

    run(scenario())


def test_each_block_is_fetched_once_for_all_kernels() -> None:
    async def scenario() -> None:
        async with bench(cpus=2) as b:
            job = b.job(len, [b"x" * 1000] * 200, inline=False, block_bytes=20_000)
            assert len(job.refs) > 5
            await b.finish(job)
            assert sorted(b.bus.reads) == sorted(set(b.bus.reads))
            assert len(b.bus.reads) == 1 + len(job.refs)

    run(scenario())


def test_inline_input_that_did_not_come_along_is_read_from_the_store() -> None:
    from nbsched.storage import Put

    async def scenario() -> None:
        async with bench() as b:
            job = b.job(lambda x: x + 1, range(5))
            assert job.inline is not None
            await b.store.commit([], [Put(b.names.inline_input(job.brief.job), job.inline)])
            await b.run(job, inline=None)
            await b.ended(job)
            assert job.values() == [1, 2, 3, 4, 5]
            gone = b.job(lambda x: x, range(2))
            await b.run(gone, inline=None)
            await b.ended(gone)
            assert gone.error(1).system == "InputNotReadableError"

    run(scenario())


def test_a_forgotten_job_can_be_run_again() -> None:
    async def scenario() -> None:
        async with bench() as b:
            job = await b.finish(b.job(lambda x: x, range(3)))
            await true(lambda: not b.service.busy)
            assert await b.command(ForgetJob(b.term, job.brief.job)) == Accepted()
            await b.run(job, round=1)
            await true(lambda: b.done(job) and all(len(r) == 2 for r in job.results.values()))
            assert {r[1].outcome.round for r in job.results.values()} == {1}

    run(scenario())


def test_messages_of_another_kind_are_no_commands() -> None:
    async def scenario() -> None:
        async with bench() as b:
            data = b.wire.seal(Kind.COMMAND, messages.AskCounts())
            await b.bus.publish(b.names.to_worker(b.id), data)
            assert await b.command(AskReport(b.term)) == Accepted()

    run(scenario())

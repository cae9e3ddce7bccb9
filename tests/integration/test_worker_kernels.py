"""A worker service with real kernel processes: results, errors, deaths, cancels."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tenacity

from nbsched.messages import OutcomeState
from nbsched.worker import endings
from nbsched.worker.deaths import Death
from nbsched.worker.kernelprocess import KernelProcess
from nbsched.worker.output import KernelOutput
from support.conditions import alive, until
from support.workerbench import Bench, bench, run, true

OK, FAILED, CANCELLED, RETRY = OutcomeState


def kernel_of(b: Bench) -> int:
    (pid,) = b.service.kernel_pids()
    return pid


def failed_with(error: Any, system: str) -> dict[str, Any]:
    assert error.system == system, error
    details: dict[str, Any] = error.details
    return details


# ---------------------------------------------------------------- results


def test_results_come_back_for_every_task_from_both_kernels() -> None:
    async def scenario() -> None:
        async with bench(cpus=2) as b:
            job = await b.finish(b.job(lambda x: (x, os.getpid()), range(2000)))
            assert [value for value, _ in job.values()] == list(range(2000))
            assert {pid for _, pid in job.values()} == set(b.service.kernel_pids())
            assert all(len(results) == 1 for results in job.results.values())
            await true(lambda: not b.service.busy)

    run(scenario())


def test_scalars_share_a_pickle_and_arrays_do_not() -> None:
    async def scenario() -> None:
        async with bench() as b:
            scalars = await b.finish(b.job(lambda x: x + 1, range(500)))
            assert scalars.values() == list(range(1, 501))
            array = np.arange(1000.0)
            arrays = await b.finish(b.job(lambda x: array * x, range(20)))
            assert all((got == array * x).all() for x, got in enumerate(arrays.values()))
            mixed = await b.finish(b.job(lambda x: [x] if x % 2 else x, range(50)))
            assert mixed.values() == [[x] if x % 2 else x for x in range(50)]

    run(scenario())


def test_the_log_gives_large_items_and_takes_large_results_in_parts() -> None:
    async def scenario() -> None:
        async with bench(cpus=2, message_bytes=100_000) as b:
            items = [np.full(150_000, x, dtype=np.uint8) for x in range(6)]
            job = await b.finish(b.job(lambda a: a + 1, items, inline=False))
            assert [int(got[-1]) for got in job.values()] == [1, 2, 3, 4, 5, 6]
            assert all(got.nbytes == 150_000 for got in job.values())

    run(scenario())


def test_whatever_a_hand_over_of_short_tasks_returns_comes_back_in_its_place() -> None:
    async def scenario() -> None:
        def task(item: Any) -> Any:
            if item % 10 == 3:
                raise ValueError(item)
            return {0: item, 1: None, 2: [item], 4: "x" * item, 5: 1.5}.get(item % 10, item)

        async with bench(cpus=1) as b:
            job = b.job(task, range(200), chunksize=200)
            await b.finish(b.job(abs))
            await b.finish(job)
            for index in range(200):
                (result,) = job.results[index]
                if index % 10 == 3:
                    assert result.outcome.state is FAILED
                else:
                    assert result.value == task(index)

    run(scenario())


def test_a_task_that_changes_the_folder_moves_no_neighbour(tmp_path: Path) -> None:
    async def scenario() -> None:
        def task(i: int) -> str:
            before = os.getcwd()
            if i % 5 == 2:
                os.chdir("/")
            return before

        async with bench(cpus=1) as b:
            job = await b.finish(b.job(task, range(50), chunksize=50))
            assert set(job.values()) == {os.getcwd()}

    run(scenario())


def test_call_shapes() -> None:
    async def scenario() -> None:
        async with bench() as b:
            star = await b.finish(b.job(lambda a, c: a - c, [(5, 3), (1, 1)], call="star"))
            assert star.values() == [2, 0]
            items = [((1, 2), {"key": 3})]
            apply = await b.finish(b.job(lambda *a, **k: (a, k), items, call="apply"))
            assert apply.values() == [((1, 2), {"key": 3})]

    run(scenario())


def test_a_kernel_imports_no_client_of_a_server_and_no_event_loop() -> None:
    async def scenario() -> None:
        def foreign(_: int) -> list[str]:
            import sys

            names = {name.partition(".")[0] for name in sys.modules}
            return sorted(names & {"grpc", "pyetcd", "nats", "asyncio", "ipywidgets", "tenacity"})

        async with bench() as b:
            assert (await b.finish(b.job(foreign))).values() == [[]]

    run(scenario())


def test_a_kernel_has_a_mark_and_no_setting_of_nbsched_in_its_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NBSCHED_NATS_TOKEN", "secret")

    async def scenario() -> None:
        async with bench() as b:
            job = await b.finish(
                b.job(lambda _: [k for k in os.environ if k.startswith("NBSCHED_")])
            )
            assert job.values() == [["NBSCHED_KERNEL"]]

    run(scenario())


def test_a_finished_neighbour_does_not_wait_for_a_long_task() -> None:
    async def scenario() -> None:
        async with bench() as b:
            job = b.job(lambda x: time.sleep(60 if x == 1 else 0), range(3), chunksize=3)
            await b.run(job)
            await true(lambda: b.done(job) and 0 in job.results)
            assert job.results[0][0].state is OK
            await b.stop(job, 0, 3)
            await b.ended(job)
            assert job.states() == [OK, CANCELLED, CANCELLED]

    run(scenario())


def test_neighbours_of_a_long_task_move_to_the_other_kernel_and_run_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        def note(x: int) -> None:
            if x == 0:
                time.sleep(60)
            with (tmp_path / "ran").open("a") as file:
                file.write(f"{x} ")

        async with bench(cpus=2) as b:
            job = b.job(note, range(20), chunksize=20)
            await b.run(job)
            await true(lambda: b.done(job) == 19, "the others ran elsewhere")
            await b.stop(job, 0, 1)
            await b.ended(job)
            assert job.states() == [CANCELLED] + [OK] * 19
            # Both kernels have read all that they were given when they have run these.
            await b.finish(b.job(lambda x: time.sleep(0.05), range(4)))
            ran = (tmp_path / "ran").read_text().split()
            assert sorted(map(int, ran)) == list(range(1, 20))

    run(scenario())


# ---------------------------------------------------------------- errors


def test_an_exception_arrives_with_its_pickle_and_the_users_frames_only() -> None:
    async def scenario() -> None:
        def fail(x: int) -> None:
            try:
                {}["missing"]
            except KeyError as error:
                raise ValueError(f"bad {x}") from error

        async with bench() as b:
            job = await b.finish(b.job(fail, range(2)))
            error = job.error(1)
            assert (error.type_name, error.message, error.system) == ("ValueError", "bad 1", None)
            assert error.pickle is not None
            copy = pickle.loads(error.pickle)
            assert type(copy) is ValueError
            assert copy.args == ("bad 1",)
            assert type(copy.__cause__) is KeyError
            assert "nbsched" + os.sep + "kernel" not in error.traceback
            assert 'raise ValueError(f"bad {x}") from error' in error.traceback
            assert "KeyError: 'missing'" in error.traceback

    run(scenario())


def test_source_lines_of_a_notebook_cell_are_in_the_traceback() -> None:
    import linecache

    source = "def cell(x):\n    return x / 0  # the guilty line\n"
    name = "<ipython-input-1-abc>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, name, "exec"), scope)

    async def scenario() -> None:
        async with bench() as b:
            job = await b.finish(b.job(scope["cell"]))
            assert "the guilty line" in job.error().traceback
            again = await b.finish(b.job(scope["cell"], range(3)))
            assert "the guilty line" in again.error(2).traceback

    run(scenario())


def test_an_exception_that_cannot_be_pickled_is_reported_without_its_pickle() -> None:
    async def scenario() -> None:
        class AwkwardError(Exception):
            def __init__(self, a: int, c: int) -> None:
                super().__init__(f"{a}/{c}")

        class MuteError(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no text")

        def fail(x: int) -> None:
            raise (MuteError(), AwkwardError(1, 2), ValueError("v", (i for i in ())))[x]

        async with bench() as b:
            job = await b.finish(b.job(fail, range(3)))
            assert "__str__ raised RuntimeError" in job.error(0).message
            assert "MuteError" in job.error(0).traceback
            rebuilt = pickle.loads(job.error(1).pickle or b"")
            assert (type(rebuilt), str(rebuilt)) == (AwkwardError, "1/2")
            assert job.error(2).pickle is None
            assert job.error(2).message.startswith("('v', <generator")

    run(scenario())


def test_a_result_that_cannot_be_pickled_fails_its_task_alone() -> None:
    async def scenario() -> None:
        async with bench() as b:
            job = await b.finish(b.job(lambda x: (i for i in ()) if x == 1 else x, range(3)))
            assert job.states() == [OK, FAILED, OK]
            details = failed_with(job.error(1), "ResultNotPicklableError")
            assert "generator" in details["cause"]

    run(scenario())


def test_a_result_over_the_limit_is_an_error_that_names_limit_and_way_out() -> None:
    async def scenario() -> None:
        async with bench(max_result_bytes=10_000) as b:
            job = await b.finish(b.job(lambda x: b"x" * x, [9_000, 11_000]))
            assert job.states() == [OK, FAILED]
            details = failed_with(job.error(1), "ResultTooLargeError")
            assert details["limit"] == 10_000
            assert details["size"] > 11_000
            assert "NBSCHED_MAX_RESULT_BYTES" in job.error(1).message

    run(scenario())


def test_an_item_that_cannot_be_unpickled_spoils_only_itself() -> None:
    async def scenario() -> None:
        class Broken:
            def __reduce__(self) -> Any:
                return int, ("not a number",)

        async with bench() as b:
            job = await b.finish(b.job(lambda x: x, [[0], Broken(), [2]]))
            assert job.states() == [OK, FAILED, OK]
            details = failed_with(job.error(1), "InputNotReadableError")
            assert details["index"] == 1
            assert "ValueError" in details["cause"]

    run(scenario())


def test_a_module_that_is_missing_on_the_worker_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone:
        def __reduce__(self) -> Any:
            return __import__, ("surely_missing_module",)

    async def scenario() -> None:
        gone = Gone()
        async with bench() as b:
            job = await b.finish(b.job(lambda x: gone, range(2)))
            assert job.states() == [FAILED, FAILED]
            failed_with(job.error(0), "InputNotReadableError")
            message = job.error(1).message
            assert "No module named 'surely_missing_module' on worker host bench" in message
            assert f"({sys.executable}): install it there" in message

    run(scenario())


def test_missing_or_forged_input_fails_its_tasks() -> None:
    async def scenario() -> None:
        async with bench() as b:
            items = [bytes([x]) * 5000 for x in range(20)]
            job = b.job(len, items, inline=False, block_bytes=40_000)
            assert len(job.refs) > 1
            last = b.names.input_part(job.brief.client, job.brief.job, job.refs[-1].block, 0)
            entry = next(entry for entry in b.bus.log if entry.subject == last)
            at = b.bus.log.index(entry)
            b.bus.log[at] = type(entry)(last, entry.sequence, entry.header, entry.data[:-1] + b"?")
            await b.finish(job)
            lost = range(job.refs[-1].first, job.count)
            for index in range(job.count):
                expected = FAILED if index in lost else OK
                assert job.results[index][-1].state is expected
            failed_with(job.error(job.count - 1), "InputNotReadableError")

    run(scenario())


# ---------------------------------------------------------------- leaving and dying


def test_sys_exit_is_a_failure_and_not_a_death() -> None:
    async def scenario() -> None:
        async with bench() as b:
            before = kernel_of(b)
            job = await b.finish(b.job(lambda x: sys.exit(2) if x == 0 else os.getpid(), range(2)))
            assert job.states() == [FAILED, OK]
            assert failed_with(job.error(0), "TaskCrashedError")["cause"] == "sys.exit(2)"
            assert job.values()[1] == before

    run(scenario())


def test_os_exit_costs_a_life_and_reports_cause_and_output() -> None:
    async def scenario() -> None:
        def die(x: int) -> int:
            if x == 3:
                print("last words")
                os._exit(3)
            return x

        async with bench() as b:
            job = await b.finish(b.job(die, range(8), chunksize=8))
            assert job.states() == [RETRY if x == 3 else OK for x in range(8)]
            outcome = job.results[3][0].outcome
            assert (outcome.crashes, outcome.retry_in_s) == (1, 0.0)
            assert outcome.first_started_at is not None
            await b.run(job, 3, 4, attempt=3, crashes=2, inline=None)
            await true(lambda: b.done(job) and len(job.results[3]) == 2)
            assert job.results[3][1].state is FAILED
            assert job.results[3][1].outcome.crashes == 3
            details = failed_with(job.error(3), "TaskCrashedError")
            assert details["cause"] == "exit code 3"
            assert details["exit_code"] == 3
            assert details["signal"] is None
            assert "last words" in details["tail"]
            assert "signal" not in job.error(3).message

    run(scenario())


def test_neighbours_of_a_killed_task_are_neither_lost_nor_blamed() -> None:
    async def scenario() -> None:
        async with bench(cpus=2) as b:
            job = b.job(
                lambda x: os.kill(os.getpid(), signal.SIGKILL) if x == 100 else x, range(200)
            )
            await b.finish(job)
            assert [i for i, state in enumerate(job.states()) if state is not OK] == [100]
            details = failed_with(job.error(100), "TaskCrashedError")
            assert details["signal"] == "SIGKILL"
            assert all(r[-1].outcome.crashes == 0 for i, r in job.results.items() if i != 100)

    run(scenario())


class _Deadly:
    """An item that kills whoever unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def test_an_item_that_kills_its_kernel_is_blamed_and_its_neighbours_are_not() -> None:
    async def scenario() -> None:
        items: list[Any] = [[i] for i in range(20)]
        items[7] = _Deadly()
        async with bench(cpus=1) as b:
            warm = await b.finish(b.job(len, [[1]], chunksize=20))
            assert warm.values() == [1]
            job = await b.finish(b.job(len, items, chunksize=20, max_crashes=1))
            states = [job.results[i][-1].outcome.state for i in range(20)]
            assert states == [FAILED if i == 7 else OK for i in range(20)]
            assert failed_with(job.results[7][-1].error, "TaskCrashedError")

    run(scenario())


def test_a_file_that_is_not_the_jobs_own_is_not_unpickled() -> None:
    async def scenario() -> None:
        async with bench() as b:
            job = b.job(len, [[1]], function_file="another-job/in-0-abcd1234", function_bytes=10)
            await b.finish(job)
            error = job.results[0][0].error
            assert error is not None
            assert error.system == "InputNotReadableError"
            assert "not its own" in error.message

    run(scenario())


def test_a_segfault_is_named() -> None:
    async def scenario() -> None:
        def crash(_: int) -> None:
            import ctypes

            ctypes.string_at(0)

        async with bench() as b:
            job = await b.finish(b.job(crash, max_crashes=1))
            assert job.states() == [FAILED]
            assert failed_with(job.error(), "TaskCrashedError")["signal"] == "SIGSEGV"

    run(scenario())


def test_a_kernel_killed_while_idle_is_replaced() -> None:
    async def scenario() -> None:
        async with bench() as b:
            await b.finish(b.job(lambda x: x))
            first = kernel_of(b)
            os.kill(first, signal.SIGKILL)
            await true(lambda: b.service.kernel_pids() not in ([], [first]))
            job = await b.finish(b.job(lambda x: os.getpid()))
            assert job.values() == [kernel_of(b)]

    run(scenario())


def test_a_death_that_is_not_taken_in_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def fail(death: Death) -> None:
        raise ZeroDivisionError("not taken in")

    async def scenario() -> None:
        process = KernelProcess()
        process.listen(lambda *_: None, lambda _: None, fail)
        process.kill()
        await process.ended()
        assert f"pid={process.pid}" in caplog.text
        assert "not taken in" in caplog.text

    run(scenario())


def _fail(*_: object) -> None:
    raise ZeroDivisionError("no account")


def _die_at_one(index: int) -> int:
    if index == 1:
        os._exit(3)
    return index


def test_a_task_whose_death_cannot_be_told_in_full_is_counted_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(KernelOutput, "last_words", _fail)
        async with bench(cpus=1) as b:
            job = b.job(_die_at_one, range(6), chunksize=6)
            await b.run(job)
            await true(lambda: b.done(job) == 6, "all results")
            assert job.results[1][0].outcome.crashes == 1
            assert failed_with(job.error(1), "TaskCrashedError")["exit_code"] == 3
            await true(lambda: not b.report().held, "nothing is held")

    run(scenario())


def test_a_task_whose_death_cannot_be_told_at_all_is_left_to_the_leader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(endings, "crashed", _fail)
        async with bench(cpus=1) as b:
            job = b.job(_die_at_one, range(6), chunksize=6)
            await b.run(job)
            await true(lambda: b.done(job) == 5, "the neighbours' results")
            assert sorted(job.results) == [0, 2, 3, 4, 5]
            await true(lambda: not b.report().held, "nothing is held")

    run(scenario())


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="it is watched in another way")
def test_a_kernel_that_cannot_be_watched_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        def fail(pid: int, flags: int = 0) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        deaths: list[Death] = []
        monkeypatch.setattr(os, "pidfd_open", fail)
        process = KernelProcess()
        process.listen(lambda *_: None, lambda _: None, deaths.append)
        await process.ended()
        assert [death.cause for death in deaths] == ["signal SIGKILL"]

    run(scenario())


class _Vast:
    """A result that asks for too much memory while it is pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise MemoryError


def test_nothing_runs_in_a_kernel_that_had_no_memory_for_a_result() -> None:
    async def scenario() -> None:
        def task(index: int) -> Any:
            return _Vast() if index == 3 else os.getpid()

        async with bench(cpus=1) as b:
            job = await b.finish(b.job(task, range(8), chunksize=8, memory_bytes=1 << 30))
            assert job.states() == [OK] * 3 + [FAILED] + [OK] * 4
            assert job.error(3).details["cause"] == "memory limit"
            pids = job.values()
            assert pids[4:] == [kernel_of(b)] * 4
            assert kernel_of(b) not in pids[:3]

    run(scenario())


def test_a_task_that_forks_reports_once() -> None:
    async def scenario() -> None:
        def fork(x: int) -> int:
            import warnings

            warnings.simplefilter("ignore")
            if os.fork() == 0:
                if x % 2:
                    raise ValueError("in the child")
                return -1
            return x

        async with bench() as b:
            job = await b.finish(b.job(fork, range(10)))
            assert job.values() == list(range(10))
            after = await b.finish(b.job(lambda x: x, range(10)))
            assert after.values() == list(range(10))
            assert all(len(results) == 1 for results in job.results.values())

    run(scenario())


def test_a_child_that_comes_back_from_a_short_task_runs_no_neighbour(tmp_path: Path) -> None:
    async def scenario() -> None:
        def task(i: int) -> int:
            if i == 5:
                os.fork()
            (tmp_path / f"{i}-{os.getpid()}").touch()
            return i

        async with bench(cpus=1) as b:
            job = await b.finish(b.job(task, range(20), chunksize=20))
            assert job.values() == list(range(20))
            assert all(len(results) == 1 for results in job.results.values())
            ran = sorted(int(name.partition("-")[0]) for name in os.listdir(tmp_path))
            assert ran in (sorted([*range(20), 5]), list(range(20)))

    run(scenario())


def test_kernels_die_with_their_daemon(tmp_path: Path) -> None:
    script = tmp_path / "daemon.py"
    script.write_text(
        "import asyncio, sys\n"
        "from support.workerbench import bench\n"
        "async def main():\n"
        "    async with bench(cpus=2) as b:\n"
        "        job = b.job(lambda x: __import__('time').sleep(60), range(2))\n"
        "        await b.run(job)\n"
        "        await b.running(job, 2)\n"
        "        print(*b.service.kernel_pids(), flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    tests = str(Path(__file__).parent.parent)
    with subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([tests, *sys.path])},
        stdout=subprocess.PIPE,
        text=True,
    ) as daemon:
        assert daemon.stdout is not None
        pids = [int(pid) for pid in daemon.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(alive, pids))
        daemon.kill()
        daemon.wait()
        until(lambda: not any(map(alive, pids)), 5.0, "the kernels died")


# ---------------------------------------------------------------- cancel and timeout


def test_a_sleeping_task_is_cancelled_at_once_and_its_kernel_lives_on() -> None:
    async def scenario() -> None:
        async with bench() as b:
            pid = kernel_of(b)
            job = b.job(lambda _: time.sleep(60))
            await b.run(job)
            await b.running(job)
            await b.stop(job, 0, 1, grace_s=3600)
            await b.ended(job)
            assert job.states() == [CANCELLED]
            assert (await b.finish(b.job(lambda _: os.getpid()))).values() == [pid]

    run(scenario())


def test_a_loop_is_cancelled_within_its_grace() -> None:
    async def scenario() -> None:
        def spin(_: int) -> None:
            while True:
                pass

        async with bench() as b:
            job = b.job(spin)
            await b.run(job)
            await b.running(job)
            await b.stop(job, 0, 1, grace_s=10)
            await b.ended(job, 5)
            assert job.states() == [CANCELLED]

    run(scenario())


def test_a_task_that_ignores_the_interrupt_is_killed_after_its_grace(tmp_path: Path) -> None:
    async def scenario() -> None:
        def stubborn(x: int) -> int:
            if x == 0:
                while True:
                    with contextlib.suppress(KeyboardInterrupt):
                        (tmp_path / "there").touch()
                        time.sleep(60)
            return x

        async with bench() as b:
            pid = kernel_of(b)
            job = b.job(stubborn, range(4), chunksize=4)
            await b.run(job)
            await true((tmp_path / "there").exists)
            await b.stop(job, 0, 1, grace_s=0.3)
            await b.ended(job)
            assert job.states() == [CANCELLED, OK, OK, OK]
            assert all(r[-1].outcome.crashes == 0 for r in job.results.values())
            assert kernel_of(b) != pid

    run(scenario())


def test_what_a_cancelled_task_returns_does_not_count() -> None:
    async def scenario() -> None:
        def catch(_: int) -> str:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                return "kept on"
            return "slept"

        async with bench() as b:
            job = b.job(catch)
            await b.run(job)
            await b.running(job)
            await b.stop(job, 0, 1)
            await b.ended(job)
            assert job.states() == [CANCELLED]

    run(scenario())


def test_a_short_task_that_swallows_its_cancel_is_cancelled_and_its_neighbours_are_not(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        def task(i: int) -> int:
            if i == 10:
                (tmp_path / "there").touch()
                try:
                    time.sleep(60)
                except KeyboardInterrupt:
                    return -1
            return i

        async with bench(cpus=1) as b:
            job = b.job(task, range(30), chunksize=30)
            await b.run(job)
            await true((tmp_path / "there").exists)
            await b.stop(job, 10, 11)
            await b.ended(job)
            states = [job.results[i][0].outcome.state for i in range(30)]
            assert states == [CANCELLED if i == 10 else OK for i in range(30)]
            assert all(len(results) == 1 for results in job.results.values())

    run(scenario())


def test_queued_tasks_are_cancelled_each_and_others_are_not_touched() -> None:
    async def scenario() -> None:
        async with bench() as b:
            long = b.job(lambda _: time.sleep(60))
            await b.run(long)
            await b.running(long)
            job = b.job(lambda x: x, range(10))
            await b.run(job)
            await b.stop(job, 2, 5)
            await true(lambda: b.done(job) == 3)
            await b.stop(job, 100, 200)  # not held: ignored
            await b.stop(long, 0, 1)
            await b.ended(job)
            assert job.states() == [CANCELLED if 2 <= x < 5 else OK for x in range(10)]

    run(scenario())


def test_a_late_interrupt_never_hits_the_neighbour() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)

    async def scenario() -> None:
        def nap(x: int) -> int:
            end = time.perf_counter() + 0.001
            while time.perf_counter() < end:
                pass
            return x

        async with bench() as b:
            job = b.job(nap, range(1500), chunksize=20)
            await b.run(job)
            asked: set[int] = set()
            while len(asked) < 200 and b.done(job) < job.count:
                await asyncio.sleep(rng.uniform(0, 0.004))
                held = b.report().held
                now = next((h.start for h in held if h.running_for_s is not None), None)
                if now is not None and now not in asked:
                    asked.add(now)
                    await b.stop(job, now, now + 1, grace_s=20)
            await b.ended(job)
            assert len(asked) == 200
            for index, state in enumerate(job.states()):
                assert state in ((OK, CANCELLED) if index in asked else (OK,)), index
            assert CANCELLED in job.states()

    run(scenario())


def test_a_signal_that_names_no_run_hits_nobody() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)

    async def scenario() -> None:
        async with bench() as b:
            await b.finish(b.job(lambda x: x))
            sent = 0
            while sent < 50:
                job = b.job(lambda x: sum(range(x)), range(20_000, 20_500))
                await b.run(job)
                while b.done(job) < job.count:
                    os.kill(kernel_of(b), signal.SIGINT)
                    sent += 1
                    await asyncio.sleep(rng.uniform(0, 0.001))
                assert job.states() == [OK] * job.count

    run(scenario())


def test_a_task_that_closes_everything_costs_only_itself() -> None:
    async def scenario() -> None:
        def close(x: int) -> int:
            if x == 1:
                os.closerange(3, 10_000)  # whatever number its connection has
                time.sleep(60)
            return x

        async with bench() as b:
            job = await b.finish(b.job(close, range(3), max_crashes=1))
            assert job.states() == [OK, FAILED, OK]
            failed_with(job.error(1), "TaskCrashedError")

    run(scenario())


def test_a_task_out_of_time_is_stopped_with_its_cause() -> None:
    async def scenario() -> None:
        async with bench() as b:
            pid = kernel_of(b)
            job = await b.finish(
                b.job(lambda x: time.sleep(60 if x == 1 else 0), range(3), task_timeout_s=0.2)
            )
            assert job.states() == [OK, FAILED, OK]
            failed_with(job.error(1), "TaskTimeoutError")
            assert "0.2 s" in job.error(1).message
            assert kernel_of(b) == pid

    run(scenario())


def stubborn_sleep(_: int) -> None:
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(60)


def test_a_task_that_cannot_be_interrupted_in_time_is_killed() -> None:
    async def scenario() -> None:
        async with bench(cancel_grace_s=0.2) as b:
            pid = kernel_of(b)
            job = await b.finish(b.job(stubborn_sleep, task_timeout_s=0.2))
            assert job.states() == [FAILED]
            failed_with(job.error(), "TaskTimeoutError")
            assert kernel_of(b) != pid

    run(scenario())


def test_the_policy_of_a_killed_task_is_asked_in_a_fresh_kernel() -> None:
    async def scenario() -> None:
        async with bench(cancel_grace_s=0.2) as b:
            job = await b.finish(b.job(stubborn_sleep, task_timeout_s=0.2, retry=1))
            assert job.states() == [RETRY]
            await b.run(job, attempt=2, inline=None)
            await true(lambda: b.done(job) and len(job.results[0]) == 2)
            assert job.states() == [FAILED]
            failed_with(job.error(), "TaskTimeoutError")

    run(scenario())


# ---------------------------------------------------------------- retry policies


async def attempts(b: Bench, job: Any, limit: int = 10) -> list[OutcomeState]:
    """Play the leader for one task: run it again as long as it says RETRY."""
    attempt, first = 1, None
    while attempt <= limit:
        await b.run(job, 0, 1, attempt=attempt, first_started_at=first)
        await true(lambda n=attempt: b.done(job) and len(job.results[0]) == n)
        outcome = job.results[0][-1].outcome
        assert outcome.attempt == attempt
        if outcome.state is not RETRY:
            break
        assert outcome.first_started_at is not None
        assert first in (None, outcome.first_started_at)
        first = outcome.first_started_at
        attempt += 1
    return [result.state for result in job.results[0]]


def failing_until(path: Path, successes_at: int, error: type[Exception]) -> Any:
    def task(_: int) -> int:
        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) < successes_at:
            raise error("not yet")
        return os.path.getsize(path)

    return task


def test_a_tenacity_policy_lets_the_third_attempt_succeed(tmp_path: Path) -> None:
    policy = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(5),
        wait=tenacity.wait_exponential(multiplier=0.1),
        retry=tenacity.retry_if_exception_type(OSError),
    )

    async def scenario() -> None:
        async with bench() as b:
            job = b.job(failing_until(tmp_path / "n", 3, OSError), retry=policy)
            assert await attempts(b, job) == [RETRY, RETRY, OK]
            waits = [result.outcome.retry_in_s for result in job.results[0][:2]]
            assert waits == [0.1, 0.2]
            assert job.values() == [3]
            wrong = b.job(failing_until(tmp_path / "m", 3, ValueError), retry=policy)
            assert await attempts(b, wrong) == [FAILED]
            assert wrong.error().type_name == "ValueError"

    run(scenario())


def test_a_policy_that_stops_leaves_the_tasks_own_exception(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with bench() as b:
            policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(2))
            job = b.job(failing_until(tmp_path / "n", 99, OSError), retry=policy)
            assert await attempts(b, job) == [RETRY, FAILED]
            assert (job.error().type_name, job.error().message) == ("OSError", "not yet")
            number = b.job(failing_until(tmp_path / "m", 99, OSError), retry=2)
            assert await attempts(b, number) == [RETRY, RETRY, FAILED]
            assert number.error().type_name == "OSError"

    run(scenario())


def test_a_policy_may_look_at_results() -> None:
    async def scenario() -> None:
        async with bench() as b:
            policy = tenacity.Retrying(
                stop=tenacity.stop_after_attempt(2),
                retry=tenacity.retry_if_result(lambda value: value is None),
            )
            job = b.job(lambda _: None, retry=policy)
            assert await attempts(b, job) == [RETRY, FAILED]
            failed_with(job.error(), "RetriesExhaustedError")
            fine = b.job(lambda _: 5, retry=policy)
            assert await attempts(b, fine) == [OK]

    run(scenario())


def test_stop_after_delay_counts_from_the_first_attempt() -> None:
    async def scenario() -> None:
        def fail(_: int) -> None:
            raise OSError("no")

        async with bench() as b:
            policy = tenacity.Retrying(stop=tenacity.stop_after_delay(100))
            job = b.job(fail, retry=policy)
            await b.run(job, attempt=2, first_started_at=time.time() - 50)
            await true(lambda: b.done(job) == 1)
            await b.run(job, attempt=3, first_started_at=time.time() - 150)
            await true(lambda: b.done(job) and len(job.results[0]) == 2)
            assert [result.state for result in job.results[0]] == [RETRY, FAILED]

    run(scenario())


def test_a_broken_policy_says_what_broke() -> None:
    async def scenario() -> None:
        def fail(_: int) -> None:
            raise OSError("no")

        def broken(_: Any) -> bool:
            raise ZeroDivisionError("in the policy")

        async with bench() as b:
            job = b.job(fail, retry=tenacity.Retrying(retry=broken))
            assert await attempts(b, job) == [FAILED]
            assert "retry policy" in job.error().message
            assert "ZeroDivisionError" in job.error().traceback

    run(scenario())

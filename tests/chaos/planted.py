"""Bugs that are planted into real daemons, kernels and clients, one at a time.

Each must be caught by the checker; a checker that lets one through proves nothing when it
finds nothing. A bug is patched in by `witness` right after the module it concerns has been
imported, in the processes of that one schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.diary import read

Patch = Callable[[Any], None]


@dataclass(frozen=True)
class Bug:
    """One mistake that somebody could make."""

    module: str
    """Which module is patched."""
    patch: Patch
    found_by: str
    """What the checker says of it."""
    faults: tuple[tuple[float, str, float], ...] = ()
    """When, what, for how long: what brings it to light."""
    long: tuple[int, float] = (4, 3.0)
    """How many long tasks there are, and their seconds."""
    hangs: bool = False
    """Its jobs never end."""
    enough: Callable[[Path], bool] = lambda folder: False
    """By the diaries there: it shows by now, and what goes on would only cost time."""


def _kernels_outlive(module: Any) -> None:
    module.tie_to_parent = lambda parent, lifeline: None


def _lost_worker_ignored(module: Any) -> None:
    module.Watcher._lose = lambda self, worker: None


def _unguarded_writes(module: Any) -> None:
    """The ledger's writes are on their way for a while, and nothing says who led then."""
    import asyncio

    on_their_way = set()

    async def write(self: Any, changes: Any) -> None:
        async def arrive() -> None:
            await asyncio.sleep(1.0)
            await self._store.commit([], changes)

        on_their_way.add(asyncio.create_task(arrive()))

    module.Ledger._write = write


def _old_leader_obeyed(module: Any) -> None:
    """The worker takes commands of any term; a queued one of the last leader does harm."""
    obey = module.WorkerService._obey
    last: dict[int, Any] = {}

    def obeying(self: Any, command: Any) -> Any:
        known, self._term = self._term, min(self._term, command.term)
        answer = obey(self, command)
        self._term = max(known, self._term)
        previous = last.get(id(self))
        last[id(self)] = command
        if previous is not None and previous.term < command.term:
            # The deposed leader's last command was on its way all the time.
            self._obey(previous)
        return answer

    module.WorkerService._obey = obeying


def _cancel_confirmed_at_once(module: Any) -> None:
    """The slot counts as free before the task has stopped; it is never told to."""

    def stop_tasks(self: Any, command: Any) -> None:
        for piece in self._backlog.stop(command.job, command.ranges):
            self._pool.cancel(piece)
        for slot in self._pool._slots:
            for named in command.ranges:
                for run in slot.runs_of(command.job, named):
                    given = slot.find(run)
                    self._pool.cancel(given.part(run, 1))

    module.WorkerService._stop_tasks = stop_tasks


def _cancel_of_queued_forgotten(module: Any) -> None:
    """Queued tasks of a cancelled job are announced as cancelled, and run all the same."""

    def stop_tasks(self: Any, command: Any) -> None:
        for piece in self._backlog.stop(command.job, command.ranges):
            self._pool.cancel(piece)
            self._backlog.give_back(piece)

    module.WorkerService._stop_tasks = stop_tasks


def _crashes_forgotten(module: Any) -> None:
    """A poison task is given its next chance for ever."""
    from dataclasses import replace

    crashed = module.crashed
    module.crashed = lambda piece, *rest: crashed(replace(piece, crashes=0), *rest)


def _poison_goes_on(folder: Path) -> bool:
    """A poison task has started once more than ``max_crashes``."""
    starts = [line[:3] for line in read(folder, "task") if line[0] == "start"]
    return starts.count(["start", "poisoned", 1]) > 3


def _first_crash_is_final(module: Any) -> None:
    from dataclasses import replace

    crashed = module.crashed
    module.crashed = lambda piece, *rest: crashed(
        replace(piece, crashes=piece.brief.max_crashes - 1), *rest
    )


def _status_for_every_outcome(module: Any) -> None:
    """The leader keeps its counts in etcd."""
    feed = module.LeaderService._feed

    def feeding(self: Any, event: Any) -> None:
        feed(self, event)
        job = self._state.jobs.get(getattr(event, "job", None))
        if type(event).__name__ == "OutcomesRead" and job is not None and not job.finished:
            from nbsched.scheduler.status import status_of

            self._ledger.save(status_of(job))

    module.LeaderService._feed = feeding


def _nothing_sent_again(module: Any) -> None:
    """What was on its way when NATS went away counts as sent."""
    module.Appender._again = lambda self, entry, wait_s=0.0: None


def _running_ones_start_again(folder: Path) -> bool:
    """A long task has started again, and the daemon that runs it was not killed."""
    killed = {line[2] for line in read(folder, "harness") if line[0] == "killed"}
    ran: dict[int, int] = {}
    for line in read(folder, "task"):
        if line[:2] == ["start", "long"]:
            index, daemon = line[2], line[5]
            if index in ran and ran[index] not in killed:
                return True
            ran[index] = daemon
    return False


def _inventory_ignored(module: Any) -> None:
    """A new leader does not take over what workers say they hold."""
    module.Job.adopt = lambda self, worker, held: None


def _last_outcome_wins(module: Any) -> None:
    """The client takes whatever comes, however often."""
    apply = module.ResultStore.apply

    def applying(self: Any, outcome: Any, body: Any) -> Any:
        for index in range(outcome.start, min(outcome.stop, len(self))):
            if outcome.state.final and self.state(index).name != "PENDING":
                self.reopen(index, self.round(index))
        return apply(self, outcome, body)

    module.ResultStore.apply = applying


NONE = "none"
"""No bug, in the same story as all bugs."""

BUGS: dict[str, Bug] = {
    "kernels outlive their daemon": Bug(
        "nbsched.kernel.lifeline",
        _kernels_outlive,
        "outlived its killed daemon",
        ((0.5, "kill_worker", 0.2),),
        # They fill all workers. An idle kernel ends by itself when its daemon hangs up.
        long=(6, 3.0),
    ),
    "a lost worker is ignored": Bug(
        "nbsched.leader.watcher",
        _lost_worker_ignored,
        "never ended",
        ((0.5, "kill_worker", 0.2),),
        hangs=True,
    ),
    "an outcome is not sent again": Bug(
        "nbsched.transport.appender",
        _nothing_sent_again,
        "never ended",
        ((0.3, "restart_nats", 0.5), (1.5, "restart_nats", 0.5)),
        hangs=True,
    ),
    "the last outcome wins": Bug(
        "nbsched.client.results",
        _last_outcome_wins,
        "changed afterwards",
        ((0.5, "freeze_worker", 4.0), (0.6, "freeze_worker", 4.0)),
    ),
    "an old leader is obeyed": Bug(
        "nbsched.worker.service",
        _old_leader_obeyed,
        "obeyed a",
        ((0.5, "kill_leader", 0.2),),
    ),
    "writes are not guarded": Bug(
        "nbsched.leader.ledger",
        _unguarded_writes,
        "was written by term",
        ((0.5, "freeze_leader", 4.0),),
    ),
    "inventory is ignored on takeover": Bug(
        "nbsched.scheduler.job",
        _inventory_ignored,
        "was started again",
        ((0.5, "kill_leader", 4.0),),
        # They fill both other workers, and still run when the dead one is back and idle.
        long=(6, 30.0),
        enough=_running_ones_start_again,
    ),
    "a cancel is confirmed before the task has stopped": Bug(
        "nbsched.worker.service", _cancel_confirmed_at_once, "after its cancel was confirmed"
    ),
    "a cancelled task runs all the same": Bug(
        "nbsched.worker.service", _cancel_of_queued_forgotten, "after its cancel was confirmed"
    ),
    "crashes are not counted": Bug(
        "nbsched.worker.endings",
        _crashes_forgotten,
        "max_crashes is 3",
        enough=_poison_goes_on,
    ),
    "the first crash is final": Bug(
        "nbsched.worker.endings", _first_crash_is_final, "is blamed for 3 deaths"
    ),
    "counts are kept in etcd": Bug(
        "nbsched.leader.service", _status_for_every_outcome, "writes to etcd"
    ),
}

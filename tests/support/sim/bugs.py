"""Bugs to plant into the product, one at a time: the simulation must find each of them.

Each is the product with one thought left out. They are put in by patching, in a process
that plays stories and does nothing else; the product has no switch for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from nbsched.client import requests
from nbsched.client.results import ResultStore, Segment, TaskState
from nbsched.kernel.protocol import Skipped
from nbsched.leader import loader
from nbsched.leader.election import Leadership
from nbsched.leader.ledger import Ledger
from nbsched.leader.outbox import Outbox
from nbsched.leader.watcher import Watcher
from nbsched.messages import Outcome, OutcomeState, RunSlice
from nbsched.model import WorkerId, to_json
from nbsched.payload.envelope import Kind
from nbsched.scheduler import events
from nbsched.scheduler.history import Histories
from nbsched.scheduler.job import Job
from nbsched.storage import Delete, Put
from nbsched.transport import LogFullError
from nbsched.worker.backlog import Backlog
from nbsched.worker.kernelpool import KernelPool
from nbsched.worker.kernelslot import KernelSlot
from nbsched.worker.results import ResultPublisher
from nbsched.worker.service import WorkerService
from support.sim.story import Theme

Plant = Callable[[], None]


@dataclass(frozen=True)
class Bug:
    """``told`` says what is left out; ``theme`` are the stories in which it is looked for."""

    told: str
    plant: Plant
    theme: Theme


BUGS: dict[str, Bug] = {}


def bug(name: str, told: str, *faults: str, **theme: Any) -> Callable[[Plant], Plant]:
    """Enter a patch under a name. ``faults`` are those of the stories, at least one each."""
    if faults:
        theme = {"faults": faults, "least_faults": 1, **theme}

    def enter(plant: Plant) -> Plant:
        BUGS[name] = Bug(told, plant, Theme(**theme))
        return plant

    return enter


@bug(
    "no fence",
    "a leader writes to the store without the guard of its own key",
    "stop leader",
    workers=(2, 3),
)
def _() -> None:
    async def write(self: Any, changes: list[Any]) -> None:
        await self._store.commit([], changes)

    _patch(Ledger, "_write", write)
    _patch(Leadership, "check", lambda self: None)


@bug(
    "old terms obeyed",
    "a worker carries out the command of a deposed leader",
    "bad messages",
    "revoke lease",
    least_faults=5,
    lengths=(0.2, 1.0),
    workers=(2, 3),
)
def _() -> None:
    obey = WorkerService._obey

    def gullible(self: Any, command: Any) -> Any:
        self._term = min(self._term, command.term)
        return obey(self, command)

    _patch(WorkerService, "_obey", gullible)


@bug(
    "acknowledged too early",
    "a worker lets go of an outcome before the log has it",
    "kill worker",
    "kill kernel",
    unusual=1.0,
    lengths=(0.02, 0.2, 1.0),
    delays=(0.03, 0.1),
)
def _() -> None:
    publish = ResultPublisher._publish

    async def hasty(self: Any, job: Any, outgoing: Any, batch: Any) -> None:
        self._on_acknowledged(job, tuple(outcome for outcome, _ in batch))
        await publish(self, job, outgoing, batch)

    _patch(ResultPublisher, "_publish", hasty)


@bug("full log gives up", "outcomes that a full log has refused are not offered again", "log full")
def _() -> None:
    async def once(self: Any, subject: str, header: bytes, data: bytes) -> int:
        try:
            return int(await self._bus.append(subject, header, data))
        except LogFullError:
            return int(await asyncio.Event().wait())

    _patch(ResultPublisher, "_insist", once)


@bug(
    "client takes every outcome",
    "a client does not look whether a task has ended already",
    "stop worker",
    "cut",
    lengths=(1.0, 3.0),
    workers=(2, 3),
)
def _() -> None:
    def apply(self: Any, outcome: Outcome, raw: memoryview) -> list[tuple[int, int]]:
        self.grow(outcome.stop)
        if outcome.state is OutcomeState.RETRY:
            return []
        states = {OutcomeState.OK: TaskState.OK, OutcomeState.FAILED: TaskState.FAILED}
        state = states.get(outcome.state, TaskState.CANCELLED)
        for index in range(outcome.start, outcome.stop):
            if self._states[index] != TaskState.PENDING:
                self.reopen(index, max(self.round(index), outcome.round))
            self._rounds[index] = max(self.round(index), outcome.round)
        segment = Segment(outcome, raw, self._job, self._folder)
        self._enter(slice(outcome.start, outcome.stop), state, segment)
        return [(outcome.start, outcome.stop)]

    _patch(ResultStore, "apply", apply)


@bug(
    "slices not compared", "a worker runs a slice that comes twice", "bad messages", workers=(2, 3)
)
def _() -> None:
    run = WorkerService._run_slice

    def forgetful(self: Any, command: RunSlice) -> Any:
        self._seen.remove(command.seq, command.seq + 1)
        return run(self, command)

    original = Backlog.add

    def take(self: Any, command: RunSlice) -> int:
        job = self._jobs.get(command.brief.job)
        if job is not None:
            for held in job.held_later(command.round, command.attempt):
                held.remove(command.start, command.stop)
        return original(self, command)

    _patch(WorkerService, "_run_slice", forgetful)
    _patch(Backlog, "add", take)


@bug(
    "inventory ignored",
    "a new leader does not take over what workers hold",
    "kill leader",
    lengths=(3.0,),
    workers=(3,),
    unusual=0.0,
)
def _() -> None:
    _patch(Job, "adopt", lambda *_: None)


@bug(
    "log not replayed",
    "a new leader takes an open job for a new one",
    "kill leader",
    lengths=(0.2, 1.0),
    workers=(2, 3),
)
def _() -> None:
    load = loader.load

    async def blank(record: Any, **how: Any) -> events.JobRebuilt:
        rebuilt = await load(record, **how)
        kept = [past for past in rebuilt.history if not isinstance(past, events.OutcomesRead)]
        return events.JobRebuilt(tuple(kept))

    _patch(loader, "load", blank)


@bug(
    "lost workers kept",
    "a lease that has ended is not noticed",
    "kill worker",
    lengths=(1.0, 3.0),
    workers=(2, 3),
)
def _() -> None:
    def lose(self: Any, worker: WorkerId) -> None:
        pass

    _patch(Watcher, "_lose", lose)


@bug(
    "cancel not durable",
    "a request is deleted when it is read, not when it is carried out",
    "kill leader",
    asks=1.0,
)
def _() -> None:
    on_request = Watcher._on_request

    def careless(self: Any, item: Any) -> None:
        on_request(self, item)
        self._store.server.serve(self._store.server.commit, [], [Delete(item.key)])

    _patch(Watcher, "_on_request", careless)


@bug("cancel not awaited", "cancel returns before its request is stored", "etcd down", asks=1.0)
def _() -> None:
    async def put(session: Any, request: Any) -> None:
        key = session.names.request(request.job, request.id)
        commit = session.store.commit([], [Put(key, to_json(request))])
        session.store._loop.create_task(_tried(commit))

    _patch(requests, "_put", put)


async def _tried(work: Awaitable[Any]) -> None:
    with suppress(Exception):
        await work


@bug(
    "slice sent once",
    "a slice that is not answered is not sent again",
    "bad messages",
    workers=(2, 3),
)
def _() -> None:
    deliver = Outbox._deliver

    async def once(self: Any, command: Any) -> Any:
        if not isinstance(command, RunSlice):
            return await deliver(self, command)
        data = self._wire.seal(Kind.COMMAND, command, term=self._term)
        await self._bus.publish(self._subject, data)
        return None

    _patch(Outbox, "_deliver", once)


@bug(
    "delays forgotten",
    "a new leader runs a delayed attempt at once",
    "kill leader",
    unusual=1.0,
    kinds=(0.75, 0.85),
    workers=(2, 3),
)
def _() -> None:
    load = loader.load

    async def at_once(record: Any, **how: Any) -> events.JobRebuilt:
        rebuilt = await load(record, **how)
        kept = []
        for past in rebuilt.history:
            if isinstance(past, events.OutcomesRead):
                sooner = tuple(msgspec.structs.replace(o, retry_in_s=0.0) for o in past.outcomes)
                past = replace(past, outcomes=sooner)
            kept.append(past)
        return events.JobRebuilt(tuple(kept))

    _patch(loader, "load", at_once)


@bug(
    "neighbours blamed",
    "all tasks that a dead kernel was given count a crash",
    "kill kernel",
    unusual=1.0,
    lengths=(0.001,),
    kinds=(0.5, 1.0),
)
def _() -> None:
    def account(self: Any, slot: KernelSlot, death: Any) -> None:
        words = slot.output.last_words(slot.process.state.active)
        for returned in slot.take_all():
            piece = returned.piece
            for index in range(piece.start, piece.stop):
                self._ended_by_death(piece.part(index, index + 1), death, 0.0, None, words)

    _patch(KernelPool, "_account_for", account)


@bug(
    "crashes not counted",
    "a task's deaths are forgotten when it runs again",
    "end watches",
    unusual=1.0,
    kinds=(0.9, 1.0),
)
def _() -> None:
    note = Histories.note_retry

    def forget(self: Any, outcome: Outcome) -> bool:
        noted = note(self, outcome)
        for index, entry in self._entries.items():
            self._entries[index] = replace(entry, crashes=0)
        return noted

    _patch(Histories, "note_retry", forget)


@bug(
    "cancel confirmed by the leader",
    "the leader confirms a cancel that a worker still has",
    "end watches",
    asks=1.0,
    lengths=(1.0, 3.0),
    unusual=0.0,
)
def _() -> None:
    cancel = Job.cancel

    def rash(self: Any, request: Any, ranges: Any) -> Any:
        to_publish = cancel(self, request, ranges)
        for held in list(self.assigned.values()):
            for start, stop in list(self.stopping.ranges()):
                to_publish += held.intersection(start, stop)
        self.stopping.remove(0, 2**40)
        return to_publish

    _patch(Job, "cancel", rash)


@bug(
    "cancel confirmed before the inventory",
    "a new leader confirms cancels before workers have told what they run",
    "cut leader",
    least_faults=2,
    asks=1.0,
    lengths=(3.0,),
    delays=(0.03,),
    workers=(2, 3),
    unusual=0.0,
)
def _() -> None:
    _patch(Job, "unsure", property(lambda self: False, lambda self, value: None))


@bug("nothing compared", "only watches tell a leader what changes", "end watches", "etcd down")
def _() -> None:
    compare = Watcher._compare

    async def once(self: Any, remember: Any) -> int:
        if remember is not None:
            return await compare(self, remember)
        return int((await self._list(self._names.workers)).revision)

    _patch(Watcher, "_compare", once)


@bug(
    "void runs forgotten",
    "what a kernel passes over is not queued again",
    "end watches",
    asks=1.0,
    lengths=(0.02, 0.2),
)
def _() -> None:
    on_frame = KernelPool._on_frame

    def deaf(self: Any, slot: Any, frame: Any, attachment: bytes) -> None:
        if isinstance(frame, Skipped):
            slot.skipped(frame.first_run, frame.count)
        else:
            on_frame(self, slot, frame, attachment)

    _patch(KernelPool, "_on_frame", deaf)
    _patch(KernelPool, "_take_back", lambda self, slot: slot.take_back())


def _patch(owner: Any, name: str, value: Any) -> None:
    assert hasattr(owner, name), f"{owner} has no {name} any more: plant this bug anew"
    setattr(owner, name, value)

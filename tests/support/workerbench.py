"""A worker service with real kernels, between a bus that records and a store in memory.

The bench plays leader and client: it uploads jobs, sends commands, and reads the
results log. Every message it passes on is real bytes, sealed and opened.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from nbsched import messages
from nbsched.messages import (
    Answer,
    BlockRef,
    Encoding,
    ErrorReport,
    JobBrief,
    Outcome,
    OutcomeBatch,
    OutcomePart,
    OutcomeState,
    RunSlice,
    StopTasks,
    WorkerReport,
)
from nbsched.model import ClientId, JobId, TaskRange, Term, WorkerId, WorkerRecord
from nbsched.names import Names
from nbsched.payload import blocks, envelope, frames, pickling
from nbsched.payload.envelope import Envelope, Key, Kind
from nbsched.settings import Settings
from nbsched.storage.memory import MemoryStore, MemoryStoreServer
from nbsched.transport import Handler, LogEntry, LogFullError, Message
from nbsched.wire import Wire
from nbsched.worker.service import WorkerService
from support.conditions import alive

T = TypeVar("T")
CLIENT = ClientId("c-test")
DEADLINE_S = 60.0


def run(test: Coroutine[Any, Any, T]) -> T:
    """Run an async test."""
    return asyncio.run(test)


async def true(condition: Callable[[], Any], what: str = "", timeout_s: float = DEADLINE_S) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what or condition} did not come true"
        await asyncio.sleep(0.005)


class RecordingBus:
    """What a worker needs of a bus, in one event loop; keeps everything it was given."""

    max_payload = 1024 * 1024

    def __init__(self) -> None:
        self.log: list[LogEntry] = []
        self.reports: list[bytes] = []
        self.full = False
        self.slow_s = 0.0
        self.reads: list[str] = []
        self._handlers: dict[str, Handler] = {}
        self._answers: dict[str, asyncio.Future[bytes]] = {}

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        if subject in self._answers:
            self._answers.pop(subject).set_result(data)
        elif subject in self._handlers:
            await self._handlers[subject](Message(subject, data, reply))
        else:
            self.reports.append(data)

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        reply = f"answer.{secrets.token_hex(4)}"
        self._answers[reply] = asyncio.get_running_loop().create_future()
        answer = self._answers[reply]
        await self.publish(subject, data, reply)
        return await asyncio.wait_for(answer, timeout_s)

    async def subscribe(self, subject: str, handler: Handler) -> RecordingBus:
        self._handlers[subject] = handler
        return self

    async def close(self) -> None:
        self._handlers.clear()

    async def append(self, subject: str, header: bytes, data: bytes) -> int:
        if self.slow_s:
            await asyncio.sleep(self.slow_s)
        if self.full:
            raise LogFullError("no room")
        assert len(data) <= self.max_payload
        self.log.append(LogEntry(subject, len(self.log) + 1, header, data))
        return len(self.log)

    async def last_of(self, log: str, subject: str) -> LogEntry | None:
        self.reads.append(subject)
        found = [entry for entry in self.log if entry.subject == subject]
        return found[-1] if found else None


@dataclass
class Result:
    """One task's outcome as the log has it."""

    outcome: Outcome
    value: Any = None
    error: ErrorReport | None = None

    @property
    def state(self) -> OutcomeState:
        return self.outcome.state


@dataclass
class Job:
    """A job as the bench has uploaded it."""

    brief: JobBrief
    count: int
    refs: tuple[BlockRef, ...] = ()
    inline: bytes | None = None
    results: dict[int, list[Result]] = field(default_factory=dict)

    def states(self) -> list[OutcomeState]:
        return [self.results[index][-1].state for index in range(self.count)]

    def values(self) -> list[Any]:
        return [self.results[index][-1].value for index in range(self.count)]

    def error(self, index: int = 0) -> ErrorReport:
        found = self.results[index][-1].error
        assert found is not None
        return found


class Bench:
    """Leader and client of one worker."""

    def __init__(self, cpus: int, settings: Settings) -> None:
        self.names = Names("bench")
        self.key = Key.generate()
        self.wire = Wire(self.key, self.names)
        self.bus = RecordingBus()
        self.store = MemoryStore(MemoryStoreServer())
        self.settings = settings
        self.id = WorkerId("w-bench")
        self.term = Term(7)
        self.seq = 0
        self.jobs: dict[str, Job] = {}
        self._read = 0
        self._parts: dict[str, list[bytes]] = {}
        record = WorkerRecord(
            id=self.id,
            host="bench",
            address="127.0.0.1",
            cpus=cpus,
            pid=os.getpid(),
            python="3",
            versions={},
            key_id=self.key.id,
            started_at=0.0,
        )
        self.service = WorkerService(
            record=record,
            names=self.names,
            key=self.key,
            bus=self.bus,  # type: ignore[arg-type]  # only what a worker needs of one
            store=self.store,
            settings=settings,
            cpus=cpus,
        )

    # ------------------------------------------------------------ jobs

    def job(
        self,
        fn: Callable[..., Any],
        items: Iterable[Any] = (0,),
        *,
        retry: object | None = None,
        inline: bool = True,
        block_bytes: int = 64 * 1024,
        **brief: Any,
    ) -> Job:
        """Make a job; ``inline`` False uploads it to the inputs log."""
        name = JobId(f"job-{len(self.jobs) + 1}")
        function = pickling.dump_function(fn, retry).join()
        packed = list(blocks.pack(items, block_bytes))
        brief = {"call": "one", "function_parts": 1, **brief}
        job = Job(JobBrief(job=name, client=CLIENT, inline=inline, **brief), 0)
        job.count = sum(block.count for block in packed)
        encoded = [block.frame.join() for block in packed]
        if inline:
            body = blocks.encode_inline(blocks.InlineInput(function, tuple(encoded)))
            job.inline = envelope.seal(self.key, self._input(name), body)
        else:
            self._upload(name, BlockRef(0, 0, 0, 1, len(function)), function)
            refs = []
            for number, (block, data) in enumerate(zip(packed, encoded, strict=True), start=1):
                parts = -(-len(data) // (100 * 1024))
                refs.append(BlockRef(number, block.first, block.count, parts, len(data)))
                self._upload(name, refs[-1], data)
            job.refs = tuple(refs)
        self.jobs[name] = job
        return job

    def _input(self, job: JobId, **fields: Any) -> Envelope:
        return Envelope(Kind.INPUT, self.names.namespace, job, **fields)

    def _upload(self, job: JobId, ref: BlockRef, data: bytes) -> None:
        size = -(-len(data) // ref.parts)
        for part in range(ref.parts):
            body = data[part * size : (part + 1) * size]
            meta = messages.encode(ref) if part == ref.parts - 1 else b""
            content = self._input(job, first=ref.first, count=ref.count, meta=meta)
            header = envelope.write(self.key, content, body)
            subject = self.names.input_part(CLIENT, job, ref.block, part)
            self.bus.log.append(LogEntry(subject, len(self.bus.log) + 1, header, body))

    # ------------------------------------------------------------ commands

    async def command(self, command: messages.AnyMessage) -> Answer:
        data = self.wire.seal(Kind.COMMAND, command, self.term)
        answer = await self.bus.request(self.names.to_worker(self.id), data, 5.0)
        found = self.wire.open(Kind.ANSWER, answer)
        assert isinstance(found, Answer)
        return found

    async def run(self, job: Job, start: int = 0, stop: int | None = None, **more: Any) -> Answer:
        """Send a slice; by default all tasks of the job."""
        self.seq += 1
        return await self.command(
            RunSlice(
                term=self.term,
                seq=self.seq,
                brief=job.brief,
                start=start,
                stop=job.count if stop is None else stop,
                blocks=job.refs,
                **{"inline": job.inline, **more},
            )
        )

    async def stop(self, job: Job, start: int, stop: int, grace_s: float = 1.0) -> Answer:
        ranges = (TaskRange(start, stop, 0),)
        return await self.command(StopTasks(self.term, job.brief.job, ranges, grace_s))

    async def finish(self, job: Job, timeout_s: float = DEADLINE_S) -> Job:
        """Send the whole job and wait for its outcomes."""
        await self.run(job)
        return await self.ended(job, timeout_s)

    async def ended(self, job: Job, timeout_s: float = DEADLINE_S) -> Job:
        """Wait until every task has an outcome, final or not."""
        await true(lambda: self.done(job) == job.count, f"{job.brief.job} ended", timeout_s)
        return job

    def done(self, job: Job) -> int:
        self.read_log()
        return len(job.results)

    # ------------------------------------------------------------ what the worker says

    def read_log(self) -> None:
        """Take new entries of the results log into their jobs, checking everything."""
        for entry in self.bus.log[self._read :]:
            self._read = entry.sequence
            if ".results." in entry.subject:
                self._take(entry)

    def _take(self, entry: LogEntry) -> None:
        content = self.wire.read(Kind.OUTCOME, entry.header)
        try:
            batch = msgspec.msgpack.decode(content.meta, type=OutcomeBatch)
        except msgspec.ValidationError:
            part = msgspec.msgpack.decode(content.meta, type=OutcomePart)
            envelope.check_body(content, entry.data)
            self._parts.setdefault(part.token, []).append(entry.data)
            return
        body = b"".join(self._parts.pop(batch.token)) if batch.parts else entry.data
        envelope.check_body(content, body)
        job = self.jobs[content.job]
        at = 0
        for outcome in batch.outcomes:
            size = outcome.body_bytes
            _take_outcome(job, outcome, body[at : at + size - sum(outcome.output)])
            at += size
        assert at == len(body)

    def report(self) -> WorkerReport:
        """What the worker reports at this moment."""
        return self.service._report()

    def reported(self) -> list[WorkerReport]:
        """What it has published so far."""
        found = [self.wire.open(Kind.REPORT, data) for data in self.bus.reports]
        assert all(isinstance(report, WorkerReport) for report in found)
        return found  # type: ignore[return-value]

    async def running(self, job: Job, count: int = 1) -> None:
        """Wait until so many tasks of the job run."""
        name = job.brief.job

        def enough() -> bool:
            held = self.report().held
            return sum(h.job == name and h.running_for_s is not None for h in held) >= count

        await true(enough, f"{count} tasks of {name} run")


def _take_outcome(job: Job, outcome: Outcome, body: bytes) -> None:
    count = outcome.stop - outcome.start
    if outcome.encoding is Encoding.SCALARS:
        results = [Result(outcome, value) for value in pickle.loads(body)]
    elif outcome.encoding is Encoding.PICKLES:
        results, at = [], 0
        for size in outcome.sizes:
            results.append(Result(outcome, frames.load(body[at : at + size])))
            at += size
    elif outcome.encoding is Encoding.ERROR:
        results = [Result(outcome, error=msgspec.msgpack.decode(body, type=ErrorReport))]
    else:
        results = [Result(outcome)] * count
    assert len(results) == count
    for index, result in enumerate(results, start=outcome.start):
        job.results.setdefault(index, []).append(result)


@asynccontextmanager
async def bench(cpus: int = 1, **settings: Any) -> AsyncIterator[Bench]:
    """A started worker service; afterwards nothing of it may be left."""
    made = Bench(cpus, Settings(**{"cancel_grace_s": 0.5, **settings}))
    await made.service.start()
    try:
        yield made
    finally:
        pids = made.service.kernel_pids()
        await made.service.stop()
        for pid in pids:
            assert not alive(pid), f"kernel {pid} is left"
        await made.store.close()

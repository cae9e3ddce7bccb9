"""Plays a story: puts up servers, daemons and clients, does what the story says, and
keeps the diary that is judged afterwards."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from nbsched.daemon import Daemon
from nbsched.errors import ConnectError
from nbsched.kernel.protocol import RunTasks
from nbsched.messages import OutcomeBatch
from nbsched.model import (
    Candidate,
    JobId,
    JobRecord,
    JobStatus,
    Request,
    TaskRange,
    WorkerId,
    WorkerRecord,
)
from nbsched.names import Names
from nbsched.payload import envelope
from nbsched.payload.envelope import Key, Kind
from nbsched.settings import Settings
from nbsched.storage import Change, Put
from nbsched.transport.loopback import LoopbackBus
from nbsched.worker.service import WorkerService
from support.invariants import Event
from support.sim import users
from support.sim.bus import SimBus, SimBusServer
from support.sim.clients import Client
from support.sim.clock import NOBODY, Host, VirtualLoop, clocks
from support.sim.faults import Faults
from support.sim.kernels import Act, SimKernel
from support.sim.network import Network
from support.sim.store import SimStore, SimStoreServer
from support.sim.story import TTL_S, JobPlan, Story

PYTHON = "3.11"
PATIENCE_S = 150.0
"""Within this everything is over, once nothing goes wrong any more."""
LOOK_S = 0.5
MOST_STARTS = 40
"""Of a task in a round: no story has so many faults, it would never end."""
GRACE_S = 10.0
"""A client that is gone while it uploads is taken for dead after this."""
_KEY = Key(b"k" * 32)

current: list[Stage] = []


@dataclass
class Worker:
    """A daemon of the story."""

    number: int
    host: Host
    daemon: Daemon
    store: SimStore
    drain: asyncio.Event
    kernels: list[SimKernel] = field(default_factory=list)
    gone: bool = False


class Stage:
    """One story being played."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.rng = random.Random(story.seed * 7 + 1)
        self.loop = VirtualLoop(random.Random(story.seed * 7 + 2))
        self.diary: list[Event] = []
        self.network = Network(self.loop, random.Random(story.seed * 7 + 3))
        self.network.weather.delay_s = story.delay_s
        self.names = Names("sim")
        self.key = _KEY
        self.settings = Settings(
            namespace="sim",
            etcd=("e:1",),
            nats=("n:1",),
            lease_ttl_s=TTL_S,
            upload_grace_s=GRACE_S,
            lost_data_grace_s=GRACE_S,
        )
        self.store = SimStoreServer(self.loop, self._on_commit, self._on_delete)
        self.bus = SimBusServer(self.network, self.loop, self._on_append, self._on_loss)
        self.bus.ensure_log(self.names.inputs_log, self.names.all_inputs)
        self.bus.ensure_log(self.names.results_log, self.names.all_results)
        self.workers: dict[int, Worker] = {}
        self.clients: dict[int, Client] = {}
        self.plans: dict[JobId, JobPlan] = {}
        self.gone: list[Host] = []
        self.calm_at = 0.0
        self.open_faults = 0
        self._starts: Counter[tuple[str, int, int]] = Counter()
        self._ended: set[tuple[str, int, int]] = set()
        """What has an outcome in the log: job, task, round."""
        self._crashed_once: set[tuple[JobId, int]] = set()
        self._pids = 0
        self._generation = 0
        self._over = False
        self._term = 0
        self.confirmed: set[JobId] = set()
        """Jobs whose submit has begun well, as their user knows."""
        self.ids = 0
        self.client_id = ""
        """Of the session that is made next."""

    # ------------------------------------------------------------ playing

    def play(self) -> list[Event]:
        """From the first event to the last; the diary."""
        users.use_loop(self.loop)
        current[:] = [self]
        watching = _Errors(self)
        with clocks(self.loop), watching:
            for number, cpus in enumerate(self.story.workers):
                self.start_worker(number, cpus)
            for number in sorted({job.client for job in self.story.jobs}):
                self.clients[number] = Client(self, number)
            faults = Faults(self)
            for plan in self.story.jobs:
                self.at(plan.at, self.clients_of(plan.client, "submit", plan))
            for ask in self.story.asks:
                client = next(job.client for job in self.story.jobs if job.name == ask.job)
                self.at(ask.at, self.clients_of(client, "ask", ask))
            faults.plan()
            self.at(LOOK_S, self._look)
            self.loop.advance(lambda: self._over, 10_000.0)
            self._clear()
        self.loop.close()
        current.clear()
        return self.diary

    def clients_of(self, number: int, what: str, plan: Any) -> Callable[[], None]:
        """A call to whoever is this client then: it may have died and been replaced."""
        return lambda: getattr(self.clients[number], what)(plan)

    def at(self, when: float, call: Callable[[], None]) -> None:
        """Do something at a time, by nobody's clock."""
        self.loop.call_later(max(0.0, when - self.loop.now), call, context=NOBODY.context)

    def note(self, what: str, **told: Any) -> None:
        self.diary.append(Event(round(self.loop.now, 6), what, **told))

    def _look(self) -> None:
        """Is it over?"""
        calm = not self.open_faults and self.loop.now >= self.calm_at
        if calm:
            left = self._left_to_do()
            if not left:
                self._over = True
                return
            if self.loop.now > self.calm_at + PATIENCE_S:
                self.note("stuck", text="; ".join(left))
                self._over = True
                return
        self.at(self.loop.now + LOOK_S, self._look)

    def _left_to_do(self) -> list[str]:
        left = [todo for client in self.clients.values() for todo in client.left_to_do()]
        statuses = {}
        for item in self.store.serve(self.store.list, self.names.statuses).items:
            status = msgspec.json.decode(item.value, type=JobStatus)
            statuses[status.job] = status
        sealed = set()
        for item in self.store.serve(self.store.list, self.names.jobs).items:
            job = JobId(item.key.removeprefix(self.names.jobs))
            if msgspec.json.decode(item.value, type=JobRecord).total is not None:
                sealed.add(job)
            # Of a submit that failed with an error, an unsealed job may be left.
            meant = job in sealed or job in self.confirmed
            if meant and (job not in statuses or not statuses[job].state.ended):
                left.append(f"the store has no end of {job}")
        for item in self.store.serve(self.store.list, self.names.requests).items:
            # A job that its client never sealed keeps its cancel: more may be uploaded.
            if item.key.split("/")[-2] in sealed:
                left.append(f"{item.key} is not carried out")
        for worker in self.workers.values():
            if worker.daemon.worker.busy:
                left.append(f"{worker.host} holds tasks")
        return left

    def _clear(self) -> None:
        """End everything. What does not end when it is cancelled is an error."""
        for client in self.clients.values():
            client.end()
        hosts = [worker.host for worker in self.workers.values()] + self.gone
        for host in hosts:
            self.loop.crash(host)
        waiting = [host for host in hosts if host.busy or host.failures]
        self.loop.advance(lambda: not any(host.busy for host in waiting), self.loop.now + 60.0)
        for host in waiting:
            for task in host.tasks():
                self.note("error", text=f"{task} of {host} does not end when it is cancelled")
            for failure in host.failures:
                self.note("error", text=failure)
        for trouble in self.loop.troubles:
            self.note(
                "error", text=f"asyncio: {trouble.get('message')} {trouble.get('exception')!r}"
            )

    # ------------------------------------------------------------ workers

    def start_worker(self, number: int, cpus: int) -> None:
        self._generation += 1
        host = self.new_host(
            f"w{number}" + (f"-{self._generation}" if number in self.workers else "")
        )
        host.context.copy().run(self._start_worker, number, cpus, host)

    def _start_worker(self, number: int, cpus: int, host: Host) -> None:
        record = WorkerRecord(
            id=WorkerId(host.name),
            host=host.name,
            address="a",
            cpus=cpus,
            pid=1,
            python=PYTHON,
            versions={},
            key_id=self.key.id,
            started_at=0.0,
        )
        store = SimStore(self.store, self.network, host, self.loop)
        bus = LoopbackBus(SimBus(self.bus, host))
        service = WorkerService(
            record=record,
            names=self.names,
            key=self.key,
            bus=bus,
            store=store,  # type: ignore[arg-type]
            settings=self.settings,
            cpus=cpus,
        )
        daemon = Daemon(record, self.settings, self.names, self.key, store, bus, service)  # type: ignore[arg-type]
        worker = Worker(number, host, daemon, store, asyncio.Event())
        self.workers[number] = worker
        self.loop.start(host, self._serve(worker))

    async def _serve(self, worker: Worker) -> None:
        while True:
            try:
                await worker.daemon.worker.start()
                break
            except ConnectError:
                await asyncio.sleep(1.0)  # whoever starts daemons starts it again
        await worker.daemon.run(worker.drain, asyncio.Event())
        self.loop.call_soon(self._drained, worker, context=NOBODY.context)

    def _drained(self, worker: Worker) -> None:
        if worker.gone:
            return
        worker.gone = True
        self.note("lost", who=worker.host.name)
        self.loop.crash(worker.host)
        self.gone.append(worker.host)
        self.start_worker(worker.number, worker.daemon.record.cpus)

    def kill_worker(self, worker: Worker) -> None:
        """SIGKILL of a daemon: its kernels die with it, its connections close."""
        if worker.gone:
            return
        worker.gone = True
        self.note("lost", who=worker.host.name)
        for kernel in worker.kernels:
            kernel.die(-9, "its daemon died")
        self.bus.drop_host(worker.host)
        self.loop.crash(worker.host)
        self.gone.append(worker.host)

    def new_host(self, name: str) -> Host:
        if not self.story.skew:
            return Host(name)
        rng = self.rng
        return Host(
            name, rng.uniform(0, 1000), 1.0 + rng.uniform(-0.02, 0.02), rng.uniform(-3600, 3600)
        )

    def leader(self) -> Worker | None:
        """The daemon that leads as far as the store says."""
        candidates = self.store.serve(self.store.list, self.names.candidates).items
        if not candidates:
            return None
        first = min(candidates, key=lambda item: item.create_revision)
        name = msgspec.json.decode(first.value, type=Candidate).worker
        return next((w for w in self.workers.values() if w.host.name == name), None)

    # ------------------------------------------------------------ what bystanders see

    def new_kernel(self) -> SimKernel:
        self._pids += 1
        kernel = SimKernel(self.loop, self, self._pids)
        for worker in self.workers.values():
            if worker.host is kernel._host:
                worker.kernels.append(kernel)
        return kernel

    def act(self, job: JobId, index: int, round_: int, attempt: int) -> Act:
        task = self.plans[job].tasks[index]
        if task.once and (job, index) in self._crashed_once:
            return Act("ok", task.acts[-1].seconds)
        acts = task.later if round_ and task.later else task.acts
        return acts[min(attempt, len(acts)) - 1]

    def started(self, worker: str, run: RunTasks, index: int) -> None:
        self._starts[run.job, index, run.round] += 1
        if self._starts[run.job, index, run.round] > MOST_STARTS and not self._over:
            self.note("stuck", text=f"task {index} of {run.job} starts again and again")
            self._over = True
        self.note(
            "started", job=run.job, index=index, round=run.round, attempt=run.attempt, who=worker
        )

    def left(self, worker: str, run: RunTasks, index: int, how: str) -> None:
        if how == "crash":
            self._crashed_once.add((run.job, index))
        self.note(
            "left",
            job=run.job,
            index=index,
            round=run.round,
            attempt=run.attempt,
            who=worker,
            text="failed" if how == "failed" else how,
        )

    def obeyed(self, worker: str, term: int) -> None:
        self.note("accepted", who=worker, term=term)

    def _on_commit(self, changes: Sequence[Change]) -> None:
        leading = self.store._items
        for change in changes:
            key = change.key
            for prefix, text in (
                (self.names.jobs, "record"),
                (self.names.statuses, "status"),
                (self.names.requests, "request"),
            ):
                if key.startswith(prefix) and isinstance(change, Put):
                    job = key.removeprefix(prefix).split("/")[0]
                    self.note("written", job=job, text=text)
                    if text == "status":
                        self._on_status(msgspec.json.decode(change.value, type=JobStatus), leading)

    def _on_append(self, subject: str, header: bytes) -> None:
        if ".results." not in subject:
            return
        content = envelope.read(self.key, header, kind=Kind.OUTCOME, namespace="sim")
        for outcome in msgspec.msgpack.decode(content.meta, type=OutcomeBatch).outcomes:
            for index in range(outcome.start, outcome.stop):
                if outcome.state.final:
                    self._ended.add((content.job, index, outcome.round))
                self.note(
                    "logged",
                    job=content.job,
                    index=index,
                    round=outcome.round,
                    attempt=outcome.attempt,
                    count=int(outcome.retry_in_s * 1000),
                    term=outcome.crashes,
                    text=outcome.state.name.lower(),
                )

    def _on_loss(self, subject: str, header: bytes) -> None:
        """The log has lost an entry."""
        if ".results." not in subject:
            job = JobId(envelope.read(self.key, header, kind=Kind.INPUT, namespace="sim").job)
            self.note("unlogged", job=job, text="items")
            return
        content = envelope.read(self.key, header, kind=Kind.OUTCOME, namespace="sim")
        for outcome in msgspec.msgpack.decode(content.meta, type=OutcomeBatch).outcomes:
            for index in range(outcome.start, outcome.stop):
                self.note(
                    "unlogged", job=content.job, index=index, round=outcome.round, text="outcome"
                )

    def _on_delete(self, key: str) -> None:
        if key.startswith(self.names.requests):
            self._on_dropped(msgspec.json.decode(self.store._items[key].value, type=Request))
        if key.startswith(self.names.workers):
            self.note("lost", who=key.removeprefix(self.names.workers))

    def _on_dropped(self, request: Request) -> None:
        """Its tasks must have ended, in the round that it names or a later one."""
        stored = self.store._items.get(self.names.job(request.job))
        if stored is None:
            return  # it goes with its job
        ranges = request.ranges
        if ranges is None:
            total = len(self.plans[request.job].tasks)
            record = msgspec.json.decode(stored.value, type=JobRecord)
            ranges = (TaskRange(0, total if record.total is None else record.total),)
        open_ = [
            index
            for named in ranges
            for index in range(named.start, named.stop)
            if not any((request.job, index, named.round + more) in self._ended for more in range(9))
        ]
        self.note("dropped", job=request.job, count=len(open_))

    def _on_status(self, status: JobStatus, items: dict[str, Any]) -> None:
        terms = [i.create_revision for k, i in items.items() if k.startswith(self.names.candidates)]
        leads = min(terms, default=0)
        if leads != self._term:
            self._term = leads
            self.note("leads", term=leads)
        self.note("status", job=status.job, term=status.term, count=leads, text=status.state.value)


class _Errors(logging.Handler):
    """Exceptions that the product logs because it did not expect them."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(logging.ERROR)
        self._stage = stage

    def __enter__(self) -> None:
        for name in ("nbsched", "asyncio"):
            logging.getLogger(name).addHandler(self)

    def __exit__(self, *_: object) -> None:
        for name in ("nbsched", "asyncio"):
            logging.getLogger(name).removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            text = f"{record.name}: {record.getMessage()}: {record.exc_info[1]!r}"
            self._stage.note("error", text=text)

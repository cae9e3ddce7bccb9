"""A client of the story: a session, its users, and what they see."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec

from nbsched.client.requests import cancel_job, cancel_tasks, retry_tasks
from nbsched.client.results import TaskState
from nbsched.client.session import Session
from nbsched.client.tracker import JobTracker
from nbsched.client.upload import Upload
from nbsched.errors import (
    ConnectError,
    InputNotReadableError,
    JobForgottenError,
    NbschedError,
    TaskCrashedError,
)
from nbsched.model import JobId, JobRecord
from nbsched.payload import pickling
from support.sim.bus import SimBus
from support.sim.clock import Host
from support.sim.store import SimStore
from support.sim.story import Ask, JobPlan
from support.sim.users import SimIo, User, sleep

if TYPE_CHECKING:
    from support.sim.stage import Stage

_TRIES = 40
_AGAIN_S = 1.0
_BLOCK_BYTES = 40


def _function(x: object) -> object:
    return x


_FUNCTION = pickling.dump_function(_function, None)


class Eyes:
    """A future, as its tracker knows it, that writes into the diary what it is told."""

    def __init__(self, client: Client, tracker: JobTracker, index: int) -> None:
        self._client = client
        self._tracker = tracker
        self._index = index
        self._done = False

    def done(self) -> bool:
        return self._done

    def _mark_running(self) -> None:
        pass

    def _resolve(self) -> None:
        segment = self._tracker.outcome(self._index)
        if segment is None:
            return  # it was opened again in the meantime
        self._done = True
        self._client.saw(self._tracker, self._index)

    def _fail(self, error: BaseException) -> None:
        self._done = True

    def _reopen(self) -> None:
        self._done = False
        self._client.note_reopened(self._tracker, self._index)


class Client:
    """One process with a notebook; its name changes when it dies and is started anew."""

    def __init__(self, stage: Stage, number: int, heir_of: Client | None = None) -> None:
        self.stage = stage
        self.number = number
        self.generation = 0 if heir_of is None else heir_of.generation + 1
        self.host: Host = stage.new_host(f"c{number}-{self.generation}")
        self.trackers: dict[str, JobTracker] = {}
        """By the name of the plan."""
        self._doing: list[User] = []
        self._todo = 0
        self._eyes: dict[JobId, list[Eyes]] = {}
        self._gave_up: set[JobId] = set()
        """Jobs whose end will not come, as the client has said."""
        self._former = heir_of
        self._connected = False
        self.session: Session
        self.host.context.copy().run(self._connect)

    def _connect(self) -> None:
        stage = self.stage
        store = SimStore(stage.store, stage.network, self.host, stage.loop)
        bus = SimBus(stage.bus, self.host)
        io = SimIo(stage.loop, self.host)
        stage.client_id = self.host.name
        self.session = Session(io, stage.settings, store, bus, stage.key)  # type: ignore[arg-type]
        self._user(self._begin)

    def _begin(self) -> None:
        self._insist(lambda: self.session._io.run(self.session._begin()))
        self._connected = True
        if self._former is not None:
            self._inherit(self._former)

    def _user(self, call: Callable[[], None]) -> None:
        user = User(self.host, call)
        self._doing.append(user)
        user.begin()

    def _insist(self, call: Callable[[], object]) -> object:
        """Users try again when a server did not answer."""
        for _ in range(_TRIES):
            try:
                return call()
            except ConnectError:
                sleep(_AGAIN_S)
        raise AssertionError("the servers never answered")

    # ------------------------------------------------------------ what users do

    def submit(self, plan: JobPlan) -> None:
        self._user(lambda: self._submit(plan))

    def _submit(self, plan: JobPlan) -> None:
        while not self._connected:
            sleep(_AGAIN_S)
        for attempt in range(_TRIES):
            job = JobId(f"{plan.name}" + (f"-{attempt}" if attempt else ""))
            if job in self.stage.plans:
                continue  # a client that has died got so far
            self.stage.plans[job] = plan
            try:
                self._upload(plan, job)
                return
            except NbschedError:
                # Not to be inherited: it is submitted again under another name.
                sleep(_AGAIN_S)

    def _upload(self, plan: JobPlan, job: JobId) -> None:
        stage, session = self.stage, self.session
        record = JobRecord(
            id=job,
            client=session.id,
            name="fn",
            submitted_at=time.time(),
            python="3.11",
            call="one",
            inline=False,
            total=None,
            cpus=plan.cpus,
            task_timeout_s=plan.task_timeout_s,
            max_crashes=plan.max_crashes,
        )
        inline_bytes = 64 * 1024 if plan.inline else 1
        session.settings = msgspec.structs.replace(
            stage.settings, inline_bytes=inline_bytes, block_bytes=_BLOCK_BYTES
        )
        upload = Upload(session, record, _FUNCTION, _items(plan))
        tracker = upload.begin()
        stage.confirmed.add(job)
        for index, task in enumerate(plan.tasks):
            kind = "poison" if task.poison else "harmless"
            stage.note("script", job=job, index=index, count=plan.max_crashes, text=kind)
        self.keep(plan.name, tracker)
        upload.advance(-1)
        stage.note("submitted", job=job, who=self.host.name, count=tracker.total or 0)

    def ask(self, ask: Ask) -> None:
        self._user(lambda: self._ask(ask))

    def _ask(self, ask: Ask) -> None:
        for _ in range(_TRIES):
            if ask.job in self.trackers:
                break
            sleep(_AGAIN_S)
        else:
            return
        tracker = self.trackers[ask.job]
        try:
            made = self._insist(lambda: self._request(ask, tracker))
        except JobForgottenError:
            self.stage.note("gave up", job=tracker.id, who=self.host.name, text="forgotten")
            return
        if made:
            self.stage.note("asked", job=tracker.id, who=self.host.name)

    def _request(self, ask: Ask, tracker: JobTracker) -> bool:
        """Whether there was anything to ask for."""
        if ask.what == "retry":
            ended = tracker.all_in(TaskState.FAILED, TaskState.CANCELLED)
            return retry_tasks(self.session, tracker, ended) > 0
        if not ask.tasks:
            cancel_job(self.session, tracker)
            return True
        known = [index for index in ask.tasks if index < tracker.known]
        return cancel_tasks(self.session, tracker, known)

    # ------------------------------------------------------------ dying, inheriting

    def die(self) -> Client:
        """SIGKILL; whoever opens the notebook again goes on with its jobs."""
        self.stage.note("lost", who=self.host.name)
        self.stage.bus.drop_host(self.host)
        self.end()
        self.stage.loop.crash(self.host)
        return Client(self.stage, self.number, heir_of=self)

    def end(self) -> None:
        self.host.alive = False
        for user in self._doing:
            user.end()
        if self.host not in self.stage.gone:
            self.stage.gone.append(self.host)

    def _inherit(self, former: Client) -> None:
        self._todo += 1
        stored = []

        def look() -> None:
            stored[:] = self.session.run(self.session.store.list(self.session.names.jobs)).items

        self._insist(look)
        mine = f"c{self.number}-"
        for item in stored:
            record = msgspec.json.decode(item.value, type=JobRecord)
            if not record.client.startswith(mine):
                continue
            plan = self.stage.plans[record.id]
            found: list[JobTracker] = []

            def attach(record: JobRecord = record, found: list[JobTracker] = found) -> None:
                found[:] = [self.session.run(self.session.attach(record))]

            self._insist(attach)
            self.keep(plan.name, found[0])
        for plan in self.stage.story.jobs:
            late = plan.at <= self.stage.loop.now
            if plan.client == self.number and late and plan.name not in self.trackers:
                self._user(lambda plan=plan: self._submit(plan))  # type: ignore[misc]
        self._todo -= 1

    # ------------------------------------------------------------ what they see

    def keep(self, name: str, tracker: JobTracker) -> None:
        self.trackers[name] = tracker
        tracker.listen(lambda: self._look_at(tracker))
        self._look_at(tracker)

    def _look_at(self, tracker: JobTracker) -> None:
        if tracker.failure is not None and tracker.id not in self._gave_up:
            self._gave_up.add(tracker.id)
            why = type(tracker.failure).__name__
            self.stage.note("gave up", job=tracker.id, who=self.host.name, text=why)
        self._open_eyes(tracker)

    def _open_eyes(self, tracker: JobTracker) -> None:
        eyes = self._eyes.setdefault(tracker.id, [])
        for index in range(len(eyes), tracker.known):
            eyes.append(tracker.future(index, lambda index: Eyes(self, tracker, index)))

    def saw(self, tracker: JobTracker, index: int) -> None:
        state = tracker.state(index)
        told = {"job": tracker.id, "index": index, "who": self.host.name}
        told["round"] = tracker.look(lambda store, _: store.round(index))
        right = 0
        if state is TaskState.OK:
            right = int(tracker.value(index) == value_of(tracker.id, index))
        elif state is TaskState.FAILED:
            error = tracker.exception(index)
            if isinstance(error, InputNotReadableError):
                self.stage.note("unreadable", **told)  # type: ignore[arg-type]
            if isinstance(error, TaskCrashedError):
                segment = tracker.outcome(index)
                crashes = segment.outcome.crashes if segment is not None else 0
                self.stage.note("crashed", count=crashes, **told)  # type: ignore[arg-type]
        self.stage.note("seen", attempt=right, text=state.name.lower(), **told)  # type: ignore[arg-type]

    def note_reopened(self, tracker: JobTracker, index: int) -> None:
        round_ = tracker._store.round(index)
        self.stage.note("reopened", job=tracker.id, index=index, round=round_, who=self.host.name)

    def left_to_do(self) -> list[str]:
        left = [f"{self.host} is still at work" for user in self._doing if not user.over]
        for name, tracker in self.trackers.items():
            if not tracker.finished and tracker.failure is None:
                pending = tracker.all_in(TaskState.PENDING)
                left.append(f"{self.host} waits for {name}: {pending} of {tracker.total}")
        return left


def value_of(job: str, index: int) -> int:
    """The item, and so the result, of a task."""
    return hash_of(job.split("-")[0]) * 1000 + index


def hash_of(name: str) -> int:
    return sum(map(ord, name))


def _items(plan: JobPlan) -> Iterator[int] | list[int]:
    values = [value_of(plan.name, index) for index in range(len(plan.tasks))]
    return values if not plan.pause_s else _slowly(values, plan.pause_s)


def _slowly(values: list[int], pause_s: float) -> Iterator[int]:
    for value in values:
        yield value
        sleep(pause_s)

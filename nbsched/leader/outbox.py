"""Commands on their way to one worker: in order, each until it is answered.

A slice is sent again until the worker has accepted it or is gone; workers ignore
repetitions. Every recall ends in `TasksRecalled`, whatever comes of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from nbsched import messages
from nbsched.errors import AuthenticationError, BusUnreachableError
from nbsched.leader.election import Leadership, LeadershipLostError
from nbsched.leader.patience import RETRY_S, alone
from nbsched.model import WorkerId
from nbsched.names import Names
from nbsched.payload.envelope import Kind
from nbsched.scheduler import events
from nbsched.transport import Bus, RequestFailedError
from nbsched.wire import Wire

log = logging.getLogger(__name__)

ANSWER_S = 2.0
"""A worker's event loop that does not answer within this is sent the same again."""


class Outbox:
    """The queue of commands to one worker, and the task that empties it."""

    def __init__(
        self,
        worker: WorkerId,
        leadership: Leadership,
        *,
        bus: Bus,
        wire: Wire,
        names: Names,
        feed: Callable[[events.Event], None],
    ) -> None:
        self.worker = worker
        self._leadership = leadership
        self._term = leadership.term
        self._bus = bus
        self._wire = wire
        self._subject = names.to_worker(worker)
        self._feed = feed
        self._queue: asyncio.Queue[messages.Command] = asyncio.Queue()

    def put(self, command: messages.Command) -> None:
        self._queue.put_nowait(command)

    async def run(self) -> None:
        """Send what is queued, for ever. Raises LeadershipLostError."""
        while True:
            command = await self._queue.get()
            answer = await self._deliver(command)
            self._conclude(command, answer)

    async def _deliver(self, command: messages.Command) -> messages.AnyMessage | None:
        data = self._wire.seal(Kind.COMMAND, command, term=self._term)
        insist = isinstance(command, (messages.RunSlice, messages.StopTasks))
        while True:
            self._leadership.check()
            try:
                reply = await alone(self._bus.request(self._subject, data, ANSWER_S))
                return self._wire.open(Kind.ANSWER, reply)
            except (RequestFailedError, BusUnreachableError) as error:
                if not insist:
                    return None
                log.info("worker=%s does not answer: %s", self.worker, error)
            except (AuthenticationError, msgspec.DecodeError) as error:
                log.warning("worker=%s gave an unusable answer: %s", self.worker, error)
            await asyncio.sleep(RETRY_S)

    def _conclude(self, command: messages.Command, answer: messages.AnyMessage | None) -> None:
        if isinstance(answer, messages.Refused) and answer.term > self._term:
            raise LeadershipLostError(f"A worker knows term {answer.term}, this is {self._term}.")
        if isinstance(command, messages.RunSlice) and isinstance(answer, messages.Refused):
            log.info("worker=%s refused a slice: %s", self.worker, answer.reason)
            refused = events.SliceRefused(
                self.worker, command.brief.job, command.start, command.stop
            )
            self._feed(refused)
        if isinstance(command, messages.RecallTasks):
            ranges = answer.ranges if isinstance(answer, messages.Recalled) else ()
            self._feed(events.TasksRecalled(self.worker, command.job, ranges))

"""Plays stories one after another: seeds, single ones, and the shortest that still fails."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import nbsched.client.room
import nbsched.client.session
import nbsched.client.tracker
import nbsched.client.upload
import nbsched.names
import nbsched.worker.kernelpool
import nbsched.worker.nursery
import nbsched.worker.reporter
import nbsched.worker.service
from nbsched.messages import Refused
from support.invariants import Event, judge
from support.sim import users
from support.sim.stage import Stage, current
from support.sim.story import Story, smaller

played = [0]


class _AtOnce:
    """The delivery thread's place: what it would do next is done now."""

    def put(self, call: Callable[[], object]) -> None:
        call()


class _Never:
    """What an upload leaves to do when its process has died: nobody does it."""

    def put(self, call: Callable[[], object]) -> None:
        pass


def install() -> None:
    """Put the simulated things where the product looks for the real ones. Once, for good:
    the process does nothing else."""
    gc.collect()
    gc.freeze()
    gc.disable()  # when finalizers run must not depend on earlier stories
    logging.getLogger("nbsched").setLevel(logging.ERROR)
    logging.getLogger("nbsched").propagate = False
    logging.getLogger("asyncio").propagate = False
    nbsched.worker.nursery.KernelProcess = lambda: current[0].new_kernel()  # type: ignore
    # Polling of shared memory, where an event is not to be had: coarser is only slower.
    nbsched.worker.reporter._LOOK_S = 0.25  # type: ignore[attr-defined]
    nbsched.worker.kernelpool._TICK_S = 0.2
    nbsched.worker.service.host_memory = lambda: (0, 0)  # type: ignore[attr-defined]
    nbsched.client.tracker.delivery = _AtOnce  # type: ignore[attr-defined, assignment]
    waiting = SimpleNamespace(wait=users.wait, Future=concurrent.futures.Future)
    nbsched.client.room.concurrent = SimpleNamespace(futures=waiting)  # type: ignore[attr-defined]
    nbsched.client.upload.delivery = _Never  # type: ignore[attr-defined]
    nbsched.client.room.print = lambda *_, **__: None  # type: ignore[attr-defined]
    nbsched.names._random = _counted
    nbsched.client.session.new_client_id = lambda: current[0].client_id  # type: ignore
    _watch_obedience()


def _counted(length: int) -> str:
    stage = current[0]
    stage.ids += 1
    return f"{stage.ids:0{length}d}"


def _watch_obedience() -> None:
    service: Any = nbsched.worker.service.WorkerService
    obey = service._obey

    def watched(self: Any, command: Any) -> Any:
        answer = obey(self, command)
        if not (isinstance(answer, Refused) and answer.term > command.term):
            current[0].obeyed(self._id, command.term)
        return answer

    service._obey = watched


def play(story: Story) -> tuple[list[Event], list[str]]:
    """The diary of a story, and what is wrong with it."""
    diary = Stage(story).play()
    played[0] += 1
    if played[0] % 64 == 0:
        gc.collect()
    return diary, judge(diary)


def shrink(story: Story, tries: int = 400) -> Story:
    """A story with less in it that still ends badly: one thing after another goes."""
    left = itertools.count(tries, -1)
    while True:
        for candidate in smaller(story):
            if next(left) <= 0:
                return story
            if play(candidate)[1]:
                story = candidate
                break
        else:
            return story

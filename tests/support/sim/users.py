"""Users at their notebooks: greenlets that run the product's blocking calls.

A user who waits (for a coroutine on the I/O loop, for an upload's blocks) hands the turn
back to the loop, which gives it back when what was waited for is there. So blocking code
runs as it does in a notebook's thread, and in the same order every time.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import traceback
from asyncio import events
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

from support.sim.clock import NOBODY, Host, VirtualLoop

T = TypeVar("T")


class GoneError(BaseException):
    """The user's process has died, or the story is over."""


class User:
    """One greenlet, for one sequence of calls."""

    current: User | None = None

    def __init__(self, host: Host, call: Callable[[], None]) -> None:
        self.host = host
        self._gone = False
        self._call = call
        self._turn = 0
        self._greenlet = greenlet(self._run)
        self._greenlet.gr_context = host.context.copy()

    @property
    def over(self) -> bool:
        return self._greenlet.dead

    def begin(self) -> None:
        self._resume()

    def end(self) -> None:
        """Unwind it: it does nothing more."""
        if not self.over:
            self._gone = True
            self._resume()
            assert self.over, "a user does not end"

    def _run(self) -> None:
        try:
            if not self._gone:
                self._call()
        except GoneError:
            pass
        except BaseException:
            if not self._gone:
                self.host.failures.append(traceback.format_exc())

    def _resume(self) -> None:
        """Called by the loop: the user goes on until it waits again, or ends."""
        if self.over:
            return
        before, User.current = User.current, self
        loop = events._get_running_loop()
        events._set_running_loop(None)  # users are not on the loop's thread
        self._greenlet.parent = getcurrent()
        self._greenlet.switch()
        events._set_running_loop(loop)
        User.current = before

    def resume(self, turn: int) -> None:
        """What it waited for in this turn is there; late calls do nothing."""
        if turn == self._turn and not self._gone:
            self._resume()

    def wait(self, call_when_there: Callable[[Callable[[], None]], None]) -> None:
        """Give the loop its turn until the callback that is passed on is called."""
        if self._gone or not self.host.alive:
            raise GoneError
        turn = self._turn
        call_when_there(lambda: self.resume(turn))
        self._greenlet.parent.switch()
        self._turn += 1
        if self._gone or not self.host.alive:
            raise GoneError


def _current() -> User:
    assert User.current is not None, "only a user may block"
    return User.current


class SimIo:
    """Stands for `nbsched.client.iothread.IoThread`: there is one loop, and it is this one."""

    usable = True

    def __init__(self, loop: VirtualLoop, host: Host) -> None:
        self.loop = loop
        self._host = host

    def start(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        done: concurrent.futures.Future[T] = concurrent.futures.Future()
        if not self._host.alive:
            work.close()
            raise GoneError
        self.loop.start(self._host, work).add_done_callback(lambda task: _copy(task, done))
        return done

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        done = self.start(work)
        wait([done])
        return done.result()


def _copy(task: asyncio.Task[T], done: concurrent.futures.Future[T]) -> None:
    if done.cancelled():
        return
    if task.cancelled():
        done.set_exception(GoneError())
    elif (error := task.exception()) is not None:
        done.set_exception(error)
    else:
        done.set_result(task.result())


def wait(futures: list[concurrent.futures.Future[Any]], timeout: float | None = None) -> Any:
    """Stands for `concurrent.futures.wait` with one future."""
    future = futures[0]
    if not future.done():
        user = _current()
        loop = asyncio_loop_of(user)

        def arm(call: Callable[[], None]) -> None:
            future.add_done_callback(lambda _: call())
            if timeout is not None:
                loop.call_later(timeout, call, context=NOBODY.context)

        user.wait(arm)
    return SimpleNamespace(done={future} if future.done() else set())


def sleep(seconds: float) -> None:
    """A user thinks."""
    user = _current()
    loop = asyncio_loop_of(user)
    user.wait(lambda call: loop.call_later(seconds, call, context=NOBODY.context))


_loop: list[VirtualLoop] = []


def use_loop(loop: VirtualLoop) -> None:
    _loop[:] = [loop]


def asyncio_loop_of(_: User) -> VirtualLoop:
    return _loop[0]


__all__ = ["GoneError", "SimIo", "User", "sleep", "use_loop", "wait"]

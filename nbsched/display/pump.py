"""Takes clicks in while a cell blocks, in kernels whose clicks would wait for its end.

With subshells (ipykernel 7, JupyterLab 4.4 and later) clicks come on a thread of their
own. Without them they queue up behind the running cell. Our blocking calls call `pump`
in between, on the main thread: it takes what has come off the kernel's own queue,
handles what a display needs (its comms, and what a reloaded page asks before it shows
anything), and gives the rest back in order, to be handled after the cell as ever.

All of it is private to ipykernel, and guarded: where something is not as expected there
is no pump, and clicks wait for the cell. A Ctrl-C meanwhile is put off to the end, so
that no message is lost half-way.
"""

from __future__ import annotations

import inspect
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import nbsched.display.widget as widget

log = logging.getLogger(__name__)

_CONTROL = "jupyter.widget.control"
_QUESTIONS = ("kernel_info_request", "comm_info_request")


def in_kernel() -> bool:
    """Whether this thread is the one that a kernel runs cells on."""
    return threading.current_thread() is threading.main_thread() and _kernel() is not None


def pump_here() -> Callable[[], None] | None:
    """What a blocking call of this thread should call now and then; None: nothing."""
    if not in_kernel() or not widget.any_open():
        return None
    kernel = _kernel()
    pump = _pumps.get(id(kernel))
    if pump is None:
        try:
            pump = _pumps[id(kernel)] = _Pump(kernel)
        except Exception:
            log.debug("clicks wait for the end of cells", exc_info=True)
            return None
    return pump.pump


def _kernel() -> Any:
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return getattr(get_ipython() if get_ipython is not None else None, "kernel", None)


_pumps: dict[int, _Pump] = {}


class _Pump:
    """The main shell's queue of one kernel."""

    def __init__(self, kernel: Any) -> None:
        import zmq

        self._zmq = zmq
        self._kernel = kernel
        self._controls: set[str] = set()
        self._broken = False
        thread = getattr(kernel, "shell_channel_thread", None)
        if thread:  # ipykernel 7: another thread reads the socket, and passes it on
            manager = thread.manager
            self._socket = manager._shell_channel_to_main.to_socket
            self._stream = manager._shell_channel_to_main.to_stream
            self._replies = manager.get_subshell_to_shell_channel_socket(None)
            self._give_back: Callable[[Any], None] = lambda frames: kernel.io_loop.add_callback(
                kernel.shell_main, None, frames
            )
        else:
            self._stream = self._replies = kernel.shell_stream
            self._socket = kernel.shell_stream.socket
            self._give_back = lambda frames: kernel.schedule_dispatch(kernel.dispatch_shell, frames)
            if not hasattr(kernel, "schedule_dispatch"):
                raise AttributeError("this kernel has no queue that is known")
        assert self._socket is not None
        assert kernel.comm_manager is not None

    def pump(self) -> None:
        """Handle what has come. Never raises, but for a Ctrl-C that came meanwhile."""
        if self._broken or not self._socket.get(self._zmq.EVENTS) & self._zmq.POLLIN:
            return
        with _interrupts_put_off():
            try:
                while self._socket.get(self._zmq.EVENTS) & self._zmq.POLLIN:
                    self._take(self._socket.recv_multipart(self._zmq.NOBLOCK, copy=False))
            except Exception:
                self._broken = True
                log.warning("clicks wait for the end of cells from now on", exc_info=True)
            # The stream is told by the edge, which was used up here: let it look once more.
            self._kernel.io_loop.add_callback(self._stream.flush)

    def _take(self, frames: list[Any]) -> None:
        session = self._kernel.session
        try:
            identities, rest = session.feed_identities(frames, copy=False)
            message = session.deserialize(rest, content=False, copy=False)
            message["content"] = session.unpack(message["content"])
            handler = self._handler(message)
        except Exception:  # not for us, and not to be lost
            handler = None
        if handler is None:
            self._give_back(frames)
            return
        message = session.deserialize(rest, content=True, copy=False)
        self._say("busy", message)
        try:
            _finish(handler(self._replies, identities, message))
        except Exception:
            log.warning("a message of the page could not be handled", exc_info=True)
        self._say("idle", message)
        # The last word that a page hears is what the kernel really does.
        self._say("busy", self._kernel.get_parent())

    def _handler(self, message: dict[str, Any]) -> Callable[..., Any] | None:
        kind = message["header"]["msg_type"]
        content = message["content"]
        if kind in _QUESTIONS:
            return self._kernel.shell_handlers.get(kind)  # type: ignore[no-any-return]
        if kind == "comm_open" and content.get("target_name") == _CONTROL:
            self._controls.add(content["comm_id"])
            return self._kernel.comm_manager.comm_open  # type: ignore[no-any-return]
        known = widget.is_ours(content.get("comm_id", "")) or content.get("comm_id") in (
            self._controls
        )
        if kind in ("comm_msg", "comm_close") and known:
            return getattr(self._kernel.comm_manager, kind)  # type: ignore[no-any-return]
        return None

    def _say(self, status: str, parent: dict[str, Any]) -> None:
        session = self._kernel.session
        topic = self._kernel._topic("status")
        content = {"execution_state": status}
        session.send(self._kernel.iopub_socket, "status", content, parent=parent, ident=topic)


def _finish(result: Any) -> None:
    """Run a handler that is declared async but waits for nothing, to its end."""
    if inspect.iscoroutine(result):
        try:
            result.send(None)
        except StopIteration:
            return
        result.close()
        raise RuntimeError("a handler of the kernel waits for something")


@contextmanager
def _interrupts_put_off() -> Iterator[None]:
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)

"""What follows the death of a kernel, with kernels that are no processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nbsched.kernel import sharedstate
from nbsched.kernel.protocol import Hello
from nbsched.kernel.sharedstate import SharedState
from nbsched.worker import nursery
from nbsched.worker.deaths import Death
from nbsched.worker.kernelslot import KernelSlot
from nbsched.worker.nursery import Nursery


class Kernel:
    """Stands for a `KernelProcess` that dies when a test says so."""

    born: list[Kernel]

    def __init__(self) -> None:
        fd = sharedstate.create()
        self.state = SharedState(fd)
        os.close(fd)
        self.pid = 1000 + len(self.born)
        self.born.append(self)

    def listen(self, on_frame: Any, on_output: Any, on_death: Callable[[Death], None]) -> None:
        self.die = on_death

    def send(self, frame: object) -> None: ...


@pytest.fixture
def born(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Kernel]]:
    """The kernels that were started."""
    Kernel.born = []
    monkeypatch.setattr(nursery, "KernelProcess", Kernel)
    yield Kernel.born
    for kernel in Kernel.born:
        kernel.state.close()


def test_a_kernel_follows_also_when_the_account_of_the_death_fails(
    born: list[Kernel], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(slot: KernelSlot, death: Death) -> None:
        raise ZeroDivisionError("no account")

    async def scenario() -> None:
        home = Hello(worker="w", host="h", max_result_bytes=1)
        kernels = Nursery(home, lambda *_: None, lambda *_: None, fail)
        kernels.start(1)
        kernels.slots[0].answered = True  # of use: the next one comes at once
        born[0].die(Death(-signal.SIGKILL, ""))
        assert [slot.process.pid for slot in kernels.slots] == [1001]

    asyncio.run(scenario())
    assert "pid=1000" in caplog.text
    assert "no account" in caplog.text

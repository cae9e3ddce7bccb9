"""A kernel that cannot be started leaves nothing open in its daemon: it will be tried again."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from nbsched.worker.kernelprocess import KernelProcess


def _descriptors() -> list[str]:
    return sorted(os.listdir("/dev/fd"))


def _until(call: Callable[..., Any], successes: int) -> Callable[..., Any]:
    """The call, which finds no descriptor left after so many successes."""
    left = iter(range(successes))

    def limited(*args: Any, **options: Any) -> Any:
        if next(left, None) is None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return call(*args, **options)

    return limited


@pytest.mark.parametrize(
    ("module", "name", "successes"),
    [
        (os, "ftruncate", 0),
        (socket, "socketpair", 0),
        (os, "pipe", 0),
        (os, "pipe", 1),
        (subprocess, "Popen", 0),
    ],
)
def test_a_kernel_that_fails_to_start_leaves_no_descriptor_open(
    module: Any, name: str, successes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        before = _descriptors()
        with monkeypatch.context() as patched:
            patched.setattr(module, name, _until(getattr(module, name), successes))
            with pytest.raises(OSError, match="Too many open files"):
                KernelProcess()
        assert _descriptors() == before

    asyncio.run(scenario())

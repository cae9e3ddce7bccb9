"""The backstop of a task's memory limit: what it leaves room for, and how it is lifted."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap

import pytest

from nbsched.kernel.memorylimit import MemoryBackstop

MIB = 1 << 20


def in_a_process_of_its_own(code: str) -> str:
    """What ``code`` prints: a limit that it sets must not stay with the tests."""
    code = "from nbsched.kernel.memorylimit import MemoryBackstop\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert not done.stderr
    return done.stdout.strip()


def test_threads_that_use_little_may_be_many() -> None:
    code = f"""
        import threading
        threading.stack_size({8 * MIB})
        backstop, done = MemoryBackstop(), threading.Event()
        backstop.set({128 * MIB})
        threads = [threading.Thread(target=done.wait, daemon=True) for _ in range(100)]
        for thread in threads:
            thread.start()
        done.set()
        for thread in threads:
            thread.join()
        backstop.lift()
        print("in peace")
    """
    assert in_a_process_of_its_own(code) == "in peace"


def test_what_goes_far_beyond_the_limit_is_refused_until_it_is_lifted() -> None:
    far = 4096 * MIB + 16 * MIB * (os.cpu_count() or 1)
    code = f"""
        import mmap, resource
        backstop, before = MemoryBackstop(), resource.getrlimit(resource.RLIMIT_DATA)
        backstop.set({128 * MIB})
        try:
            mmap.mmap(-1, {far}, flags=mmap.MAP_PRIVATE)
        except OSError:
            print("refused")
        backstop.lift()
        assert resource.getrlimit(resource.RLIMIT_DATA) == before
    """
    assert in_a_process_of_its_own(code) == "refused"


class Rlimit:
    """A process's RLIMIT_DATA, as the system guards it from whoever is not root."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        getrlimit = resource.getrlimit
        monkeypatch.setattr(
            resource,
            "getrlimit",
            lambda which: self.now if which == resource.RLIMIT_DATA else getrlimit(which),
        )
        monkeypatch.setattr(resource, "setrlimit", self._set)

    def _set(self, _: int, limits: tuple[int, int]) -> None:
        soft, hard = (_unsigned(each) for each in limits)
        if soft > hard:
            raise ValueError("current limit exceeds maximum limit")
        if hard > _unsigned(self.now[1]):
            raise ValueError("not allowed to raise maximum limit")
        self.now = limits


def _unsigned(limit: int) -> int:
    return 2**64 - 1 if limit == resource.RLIM_INFINITY else limit


def test_lifting_goes_as_far_as_a_task_allows_that_has_lowered_the_hard_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rlimit = Rlimit(monkeypatch)
    backstop = MemoryBackstop()
    backstop.set(128 * MIB)
    rlimit.now = (300 * MIB, 5000 * MIB)  # the task's own doing
    backstop.lift()
    assert rlimit.now == (5000 * MIB, 5000 * MIB)
    backstop.lift()
    assert rlimit.now == (5000 * MIB, 5000 * MIB)


def test_a_limit_that_the_system_cannot_count_sets_none() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    backstop = MemoryBackstop()
    backstop.set(2**62)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    backstop.lift()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before

"""For all tests: the real servers, a namespace of one's own, and how they run side by side."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Callable
from typing import Any

import pytest

from support import sidebyside
from support.etcd import etcd_server, private_etcd
from support.nats import nats_server

__all__ = ["etcd_server", "namespace", "nats_server", "private_etcd"]


def pytest_configure() -> None:
    # What a shell script starts in the background ignores SIGINT, and so would all that
    # tests start: there are tests of Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several processes
        sidebyside.long_ones_first(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Callable[..., None]) -> Any:
    return sidebyside.scheduler(config, log)


@pytest.fixture
def namespace() -> str:
    """A valid namespace that no other test uses, as the servers are shared."""
    return f"t-{secrets.token_hex(5)}"

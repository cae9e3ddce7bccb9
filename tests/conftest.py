"""For all tests: the real servers, a namespace of one's own, and how they run side by side."""

from __future__ import annotations

import secrets
import signal
import tempfile
from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests, and the processes that they start, leave in the system's temporary folder
    lies in pytest's own, which goes when all have passed."""
    folder = str(tmp_path_factory.mktemp("tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture
def namespace() -> str:
    """A valid namespace that no other test uses, as the servers are shared."""
    return f"t-{secrets.token_hex(5)}"

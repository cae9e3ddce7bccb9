"""Real clusters: real etcd, real NATS, real daemons, on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nbsched import LocalCluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """One daemon with two kernels, shared by the tests of a module."""
    with LocalCluster(workers=1, cpus=2, cancel_grace_s=1.0) as running:
        yield running

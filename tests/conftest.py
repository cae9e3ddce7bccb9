"""Fixtures for all tests: the real servers, and a namespace of one's own."""

from __future__ import annotations

import secrets

import pytest

from support.etcd import etcd_server, private_etcd
from support.nats import nats_server

__all__ = ["etcd_server", "namespace", "nats_server", "private_etcd"]


@pytest.fixture
def namespace() -> str:
    """A valid namespace that no other test uses, as the servers are shared."""
    return f"t-{secrets.token_hex(5)}"

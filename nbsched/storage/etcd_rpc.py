"""etcd's wire format: requests are built and answers translated here, and only here.

The generated stubs come from etcd-sdk-python; the only place that imports them, so
that gRPC is told in time not to hook into fork. Nothing here talks to a server.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

# gRPC warns on stderr at every fork of a process that has imported it, unless this
# was set before the import. A notebook must be able to run `!ls` without that noise.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
import grpc.aio
from pyetcd.etcdrpc import kv_pb2, rpc_pb2, rpc_pb2_grpc

from nbsched._compat import assert_never
from nbsched.storage import (
    Absent,
    Change,
    Changed,
    CreatedAt,
    Delete,
    Deleted,
    Guard,
    KeyValue,
    ModifiedAt,
    Present,
    Put,
    WatchEvent,
)

__all__ = [
    "authenticate_request",
    "delete_request",
    "end_of_prefix",
    "event",
    "grpc",
    "keepalive_request",
    "key_value",
    "lease_grant_request",
    "lease_revoke_request",
    "page_request",
    "range_request",
    "rpc_pb2",
    "rpc_pb2_grpc",
    "status_request",
    "txn_request",
    "watch_request",
]


def end_of_prefix(prefix: str) -> bytes:
    """The first key behind all keys with this prefix."""
    start = prefix.encode()
    # UTF-8 has no byte 0xff, so the last byte can always be counted up.
    return start[:-1] + bytes((start[-1] + 1,))


def range_request(key: str) -> Any:
    return rpc_pb2.RangeRequest(key=key.encode())


def page_request(start: bytes, prefix: str, limit: int, revision: int) -> Any:
    """Keys under ``prefix`` from ``start`` on; ``revision`` 0 is the newest."""
    return rpc_pb2.RangeRequest(
        key=start, range_end=end_of_prefix(prefix), limit=limit, revision=revision
    )


def txn_request(guards: Sequence[Guard], changes: Sequence[Change]) -> Any:
    request = rpc_pb2.TxnRequest(
        compare=[_compare(guard) for guard in guards],
        success=[_operation(change) for change in changes],
    )
    if not changes and guards:
        # etcd answers a transaction without operations from its own, possibly old,
        # state. A read makes it linearizable.
        read = rpc_pb2.RangeRequest(key=guards[0].key.encode(), count_only=True)
        request.success.append(rpc_pb2.RequestOp(request_range=read))
    return request


def _compare(guard: Guard) -> Any:
    key = guard.key.encode()
    equal, greater = rpc_pb2.Compare.EQUAL, rpc_pb2.Compare.GREATER
    created, modified = rpc_pb2.Compare.CREATE, rpc_pb2.Compare.MOD
    match guard:
        case Absent():
            compare = rpc_pb2.Compare(key=key, target=created, result=equal, create_revision=0)
        case Present():
            compare = rpc_pb2.Compare(key=key, target=created, result=greater, create_revision=0)
        case CreatedAt(revision=revision):
            compare = rpc_pb2.Compare(
                key=key, target=created, result=equal, create_revision=revision
            )
        case ModifiedAt(revision=revision):
            compare = rpc_pb2.Compare(key=key, target=modified, result=equal, mod_revision=revision)
        case _:
            assert_never(guard)
    return compare


def _operation(change: Change) -> Any:
    match change:
        case Put(key=key, value=value, lease=lease):
            put = rpc_pb2.PutRequest(key=key.encode(), value=bytes(value), lease=lease or 0)
            operation = rpc_pb2.RequestOp(request_put=put)
        case Delete(key=key):
            operation = rpc_pb2.RequestOp(request_delete_range=delete_request(key))
        case _:
            assert_never(change)
    return operation


def delete_request(key: str) -> Any:
    return rpc_pb2.DeleteRangeRequest(key=key.encode())


def watch_request(prefix: str, from_revision: int) -> Any:
    create = rpc_pb2.WatchCreateRequest(
        key=prefix.encode(),
        range_end=end_of_prefix(prefix),
        start_revision=from_revision,
        progress_notify=True,
    )
    return rpc_pb2.WatchRequest(create_request=create)


def lease_grant_request(ttl_s: int) -> Any:
    return rpc_pb2.LeaseGrantRequest(TTL=ttl_s)


def lease_revoke_request(lease_id: int) -> Any:
    return rpc_pb2.LeaseRevokeRequest(ID=lease_id)


def keepalive_request(lease_id: int) -> Any:
    return rpc_pb2.LeaseKeepAliveRequest(ID=lease_id)


def authenticate_request(user: str, password: str) -> Any:
    return rpc_pb2.AuthenticateRequest(name=user, password=password)


def status_request() -> Any:
    return rpc_pb2.StatusRequest()


def key_value(item: Any) -> KeyValue:
    return KeyValue(
        key=item.key.decode(errors="replace"),
        value=item.value,
        create_revision=item.create_revision,
        mod_revision=item.mod_revision,
    )


def event(raw: Any) -> WatchEvent:
    if raw.type == kv_pb2.Event.DELETE:
        return Deleted(raw.kv.key.decode(errors="replace"), raw.kv.mod_revision)
    return Changed(key_value(raw.kv))

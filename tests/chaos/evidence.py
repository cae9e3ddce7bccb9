"""What is left when a schedule is over: etcd's history, and processes that still run.

Reads etcd by its generated stubs and `/proc` directly, nothing by the code under test.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbsched.storage.etcd_rpc import grpc, kv_pb2, rpc_pb2, rpc_pb2_grpc

ASK_WITHIN_S = 5.0


@dataclass(frozen=True)
class Change:
    """One change of one key. ``value`` None: it was deleted."""

    revision: int
    key: str
    """Below the namespace's root."""
    value: Any
    created: int
    """Create-revision of the key, 0 when it was deleted."""


def history(endpoint: str, root: str) -> list[Change]:
    """Every change below ``root`` since this etcd began."""
    with grpc.insecure_channel(endpoint) as channel:
        last = _revision(channel)
        request = rpc_pb2.WatchRequest(
            create_request=rpc_pb2.WatchCreateRequest(
                key=root.encode(), range_end=_end(root), start_revision=1, progress_notify=True
            )
        )
        # A key of our own, so that there is something to stop at.
        mark = f"{root}zz-end"
        rpc_pb2_grpc.KVStub(channel).Put(
            rpc_pb2.PutRequest(key=mark.encode()), timeout=ASK_WITHIN_S
        )
        found: list[Change] = []
        answers = rpc_pb2_grpc.WatchStub(channel).Watch(iter([request]), timeout=4 * ASK_WITHIN_S)
        for answer in answers:
            if answer.canceled:
                raise RuntimeError(f"the history before {last} is gone: {answer.cancel_reason}")
            for event in answer.events:
                if event.kv.key.decode() == mark:
                    answers.cancel()
                    return found
                found.append(_change(event, root))
    raise RuntimeError("the watch ended")


def _change(event: Any, root: str) -> Change:
    key = event.kv.key.decode().removeprefix(root)
    if event.type == kv_pb2.Event.DELETE:
        return Change(event.kv.mod_revision, key, None, 0)
    binary = key.startswith("inputs/")
    value = {} if binary else json.loads(event.kv.value)
    return Change(event.kv.mod_revision, key, value, event.kv.create_revision)


def _revision(channel: Any) -> int:
    request = rpc_pb2.RangeRequest(key=b"/")
    answer = rpc_pb2_grpc.KVStub(channel).Range(request, timeout=ASK_WITHIN_S)
    return int(answer.header.revision)


def _end(prefix: str) -> bytes:
    raw = bytearray(prefix.encode())
    raw[-1] += 1
    return bytes(raw)


def leader_pid(endpoint: str, root: str) -> int | None:
    """The daemon that leads, as etcd has it; None when it cannot be told."""
    request = rpc_pb2.RangeRequest(
        key=f"{root}leader/".encode(),
        range_end=_end(f"{root}leader/"),
        sort_order=rpc_pb2.RangeRequest.ASCEND,
        sort_target=rpc_pb2.RangeRequest.CREATE,
        limit=1,
    )
    try:
        with grpc.insecure_channel(endpoint) as channel:
            answer = rpc_pb2_grpc.KVStub(channel).Range(request, timeout=1)
    except grpc.RpcError:
        return None
    return int(json.loads(answer.kvs[0].value)["pid"]) if answer.kvs else None


def processes_of(mark: str) -> list[int]:
    """Processes that carry this text in their environment, zombies excepted."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes()
            state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if mark.encode() in environment and state not in ("Z", "X"):
            found.append(int(entry))
    return found

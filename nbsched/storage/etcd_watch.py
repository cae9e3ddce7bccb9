"""One watch on etcd: a stream of its own that ends with an error, never silently.

Starts nothing again: that is the caller's business, who has to list first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from nbsched.errors import NbschedError
from nbsched.storage import WatchEndedError, WatchEvent, etcd_errors, etcd_rpc
from nbsched.storage.etcd_calls import EtcdCalls
from nbsched.storage.etcd_endpoints import Endpoint
from nbsched.storage.etcd_rpc import grpc


async def watch(
    calls: EtcdCalls, prefix: str, from_revision: int
) -> AsyncGenerator[Sequence[WatchEvent], None]:
    """See `nbsched.storage.Store.watch`.

    etcd sends the events of one revision in one message, unless a client asks for
    fragments, which this one does not.
    """
    endpoint = calls.current
    try:
        async with contextlib.aclosing(_responses(calls, endpoint, prefix, from_revision)) as all_:
            async for response in all_:
                if response.events:
                    yield [etcd_rpc.event(raw) for raw in response.events]
    except (grpc.aio.AioRpcError, etcd_errors.StreamEndedError, TimeoutError) as error:
        calls.failed(endpoint)
        raise _ended(prefix, endpoint, etcd_errors.details(error)) from error
    except NbschedError as error:  # the login failed, or the store was closed
        raise _ended(prefix, endpoint, str(error)) from error


async def _responses(
    calls: EtcdCalls, endpoint: Endpoint, prefix: str, from_revision: int
) -> AsyncGenerator[Any, None]:
    how = await calls.closing.run(calls.how(endpoint))
    call = endpoint.watches.Watch(**how)
    try:
        created = await calls.closing.run(
            _create(call, prefix, from_revision), calls.settings.connect_timeout_s
        )
        _check(calls, endpoint, prefix, created)
        while True:
            response = await calls.closing.run(_read(call))
            _check(calls, endpoint, prefix, response)
            yield response
    finally:
        call.cancel()


async def _create(call: Any, prefix: str, from_revision: int) -> Any:
    # A stream that is broken already says why when it is read.
    with contextlib.suppress(asyncio.InvalidStateError):
        await call.write(etcd_rpc.watch_request(prefix, from_revision))
    return await _read(call)


async def _read(call: Any) -> Any:
    response = await call.read()
    if response is grpc.aio.EOF:
        raise etcd_errors.StreamEndedError(f"the server ended it: {await call.details() or 'EOF'}")
    return response


def _check(calls: EtcdCalls, endpoint: Endpoint, prefix: str, response: Any) -> None:
    """Raise WatchEndedError for a response that says that no more will follow."""
    if response.compact_revision:
        cause = f"its start has been compacted up to revision {response.compact_revision}"
        raise _ended(prefix, endpoint, cause)
    if response.canceled or response.watch_id == -1:
        # A token that has expired shows as a denial, and only a new one can tell.
        calls.forget_token()
        cause = response.cancel_reason or "the server denied or cancelled it"
        raise _ended(prefix, endpoint, cause)


def _ended(prefix: str, endpoint: Endpoint, cause: str) -> WatchEndedError:
    return WatchEndedError(f"The watch on {prefix!r} at etcd {endpoint.address} ended: {cause}")

"""Requests to JetStream: streams, consumers, single messages.

Knows the JSON of the JetStream API and its error codes, and nothing about readers or
about what a log is for. Whatever goes wrong comes out as one of our errors.
"""

from __future__ import annotations

import logging
from typing import Any, TypeVar

import msgspec
from nats.aio.msg import Msg

from nbsched.errors import (
    AuthenticationError,
    BusUnreachableError,
    ConnectError,
    JetStreamMissingError,
)
from nbsched.payload.envelope import from_header
from nbsched.transport import LogEntry, RequestFailedError
from nbsched.transport.connection import Connection, NobodyListensError

log = logging.getLogger(__name__)

HEADER = "Nbsched"
"""The NATS header in which an entry's envelope travels."""
DUPLICATE_WINDOW_S = 120
"""An append that is repeated within this time is stored once. It covers a server's
restart; the server keeps every message id for so long, so more costs memory."""

_S = 1_000_000_000
_NOT_ENABLED = {10039, 10076}
_STREAM_PURGE_FAILED = 10051
_STREAM_EXISTS = 10058
_STREAM_NOT_FOUND = 10059


class ApiError(BusUnreachableError):
    """JetStream answered with an error.

    It counts as unreachable: nearly all of these pass (no leader yet, a stream still
    being recovered), and callers wait and try again in either case.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class ErrorBody(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _State(msgspec.Struct):
    last_seq: int = 0
    subjects: dict[str, int] = {}
    """Numbers of messages, of the subjects that were asked for; a page of them."""


class _Response(msgspec.Struct):
    error: ErrorBody | None = None


class _StreamInfo(_Response):
    state: _State = msgspec.field(default_factory=_State)
    total: int = 0
    """Of subjects, on all pages."""
    created: str = ""


class ConsumerInfo(_Response):
    num_pending: int = 0
    """Entries that match and were not delivered yet."""


_R = TypeVar("_R", bound=_Response)


class JetStream:
    """The API of one server or cluster."""

    def __init__(self, connection: Connection, timeout_s: float) -> None:
        self.connection = connection
        self.timeout_s = timeout_s
        self._configs: dict[str, dict[str, object]] = {}
        """Streams that have to be there."""

    async def check(self) -> None:
        """Raise JetStreamMissingError when the server runs without JetStream."""
        missing = (
            f"NATS at {self.connection.servers} runs without JetStream, which keeps inputs and"
            " results. Start nats-server with -js (and -sd DIRECTORY)."
        )
        try:
            await self._call("INFO", None, _Response)
        except ApiError as error:
            if error.code in _NOT_ENABLED:
                raise JetStreamMissingError(missing) from error
            raise
        except BusUnreachableError as error:
            if isinstance(error.__cause__, NobodyListensError):
                raise JetStreamMissingError(missing) from error
            raise

    async def ensure_stream(self, stream: str, subjects: str, replicas: int) -> None:
        """Create a stream unless it exists, whatever its limits then are."""
        config: dict[str, object] = {
            "name": stream,
            "subjects": [subjects],
            "retention": "limits",
            "storage": "file",
            # A full stream refuses; dropping the oldest would lose outcomes silently. Nor is
            # there a greatest age: the leader deletes what belongs to jobs that are gone.
            "discard": "new",
            "duplicate_window": DUPLICATE_WINDOW_S * _S,
            "num_replicas": replicas,
            "allow_direct": True,
        }
        await self._create_stream(stream, config)
        self._configs[stream] = config

    async def _create_stream(self, stream: str, config: dict[str, object]) -> None:
        try:
            await self._call(f"STREAM.CREATE.{stream}", config, _Response)
        except ApiError as error:
            if error.code != _STREAM_EXISTS:
                raise ConnectError(
                    f"The log {stream} cannot be created: {error} Give JetStream room, or remove"
                    " the stream that is in its way (nats stream ls)."
                ) from error

    async def identity(self, stream: str) -> tuple[str, int]:
        """The time of the stream's creation, another one when it was lost and made anew; and
        the sequence number of its newest entry."""
        info = await self._call(f"STREAM.INFO.{stream}", None, _StreamInfo)
        return info.created, info.state.last_seq

    async def last_sequence(self, stream: str) -> int:
        info = await self._call(f"STREAM.INFO.{stream}", None, _StreamInfo)
        return info.state.last_seq

    async def subjects(self, stream: str, subject: str) -> set[str]:
        """All pages; what comes and goes meanwhile may be missing."""
        found: set[str] = set()
        offset = 0
        while True:
            request = {"subjects_filter": subject, "offset": offset}
            info = await self._call(f"STREAM.INFO.{stream}", request, _StreamInfo)
            found |= info.state.subjects.keys()
            offset += len(info.state.subjects)
            if not info.state.subjects or offset >= info.total:
                return found

    async def purge(self, stream: str, subject: str) -> None:
        await self._call(f"STREAM.PURGE.{stream}", {"filter": subject}, _Response)

    async def write_error(self, stream: str, subject: str) -> str:
        """What keeps the stream from being written to, if anything.

        A stream whose disk was full takes nothing any more and does not answer appends,
        until the server is started again. A purge, here of a ``subject`` without entries,
        says why.
        """
        try:
            await self._call(f"STREAM.PURGE.{stream}", {"filter": subject}, _Response)
        except ApiError as error:
            return str(error) if error.code == _STREAM_PURGE_FAILED else ""
        return ""

    async def last_of(self, stream: str, subject: str) -> LogEntry | None:
        """Ask any replica directly: no JSON, no base64, one message back."""
        path = f"$JS.API.DIRECT.GET.{stream}.{subject}"
        answer = await self._ask(path, b"")
        headers = answer.headers or {}
        status = headers.get("Status")
        if status == "404":
            return None
        if status is not None or "Nats-Sequence" not in headers:
            cause = headers.get("Description") or status or "an answer without a sequence"
            raise ApiError(f"The log {stream} cannot be read: {cause}.", 0)
        sequence = int(headers["Nats-Sequence"])
        return LogEntry(
            headers.get("Nats-Subject", subject), sequence, envelope_of(answer), answer.data
        )

    async def create_consumer(
        self, stream: str, name: str, subject: str, start: int, *, headers_only: bool, idle_s: float
    ) -> ConsumerInfo:
        """Create an ephemeral pull consumer that nothing has to acknowledge."""
        config = {
            "name": name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": start,
            "ack_policy": "none",
            "replay_policy": "instant",
            "filter_subject": subject,
            "headers_only": headers_only,
            "inactive_threshold": int(idle_s * _S),
            "mem_storage": True,
            "num_replicas": 1,
        }
        path = f"CONSUMER.CREATE.{stream}.{name}.{subject}"
        return await self._call(path, {"stream_name": stream, "config": config}, ConsumerInfo)

    async def delete_consumer(self, stream: str, name: str) -> None:
        """Ask for it and do not wait: it would vanish by itself after its idle time."""
        await self.connection.publish(f"$JS.API.CONSUMER.DELETE.{stream}.{name}", b"")

    async def pull(
        self,
        stream: str,
        consumer: str,
        reply: str,
        *,
        batch: int,
        max_bytes: int,
        expires_s: float,
        heartbeat_s: float,
    ) -> None:
        """Ask a consumer for its next messages; they go to ``reply``."""
        request = {
            "batch": batch,
            "max_bytes": max_bytes,
            "expires": int(expires_s * _S),
            "idle_heartbeat": int(heartbeat_s * _S),
        }
        path = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        await self.connection.publish(path, msgspec.json.encode(request), reply)

    async def _call(self, path: str, request: Any, kind: type[_R]) -> _R:
        body = b"" if request is None else msgspec.json.encode(request)
        answer = await self._ask(f"$JS.API.{path}", body)
        try:
            response = msgspec.json.decode(answer.data, type=kind)
        except msgspec.DecodeError as error:
            raise ApiError(f"JetStream gave an unusable answer to {path}: {error}.", 0) from error
        if response.error is not None:
            if response.error.err_code == _STREAM_NOT_FOUND:
                await self._restore(path.split(".")[2])
            raise _api_error(path, response.error)
        return response

    async def _restore(self, stream: str) -> None:
        """Make a stream again that its servers have lost; whoever needs it tries again."""
        config = self._configs.get(stream)
        if config is None:
            return
        log.error("log=%s: JetStream has lost it with its data; it is made anew", stream)
        try:
            await self._create_stream(stream, config)
        except ConnectError as error:
            log.warning("%s", error)

    async def _ask(self, subject: str, body: bytes) -> Msg:
        try:
            return await self.connection.ask(subject, body, self.timeout_s)
        except RequestFailedError as error:
            raise BusUnreachableError(
                f"JetStream at {self.connection.servers} does not answer: {error} Check that"
                " nats-server runs with -js and that the log exists."
            ) from error


def envelope_of(message: Msg) -> bytes:
    """The envelope in a message's header; empty when there is none that can be read.

    An empty one fails its check like any forged one, where it is known what for.
    """
    try:
        return from_header((message.headers or {}).get(HEADER, ""))
    except AuthenticationError:
        return b""


def _api_error(path: str, body: ErrorBody) -> ApiError:
    if body.err_code == _STREAM_NOT_FOUND:
        stream = path.split(".")[2]
        text = f"The log {stream} does not exist: JetStream has lost it, or no worker was started."
    else:
        text = f"JetStream answers to {path}: {body.description} (error {body.err_code})."
    return ApiError(text, body.err_code)

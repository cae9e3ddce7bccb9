"""Callables and blocks on this host: fetched once, checked, kept while there is room.

A fetch that several kernels wait for happens once. Nothing here unpickles; what is
handed out has been authenticated and belongs to the job, block and tasks that it
was asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import msgspec

from nbsched.errors import AuthenticationError, ConnectError
from nbsched.messages import BlockRef, JobBrief
from nbsched.model import JobId
from nbsched.names import Names
from nbsched.payload import blocks, envelope, pickling
from nbsched.payload.envelope import Envelope, Key, Kind
from nbsched.storage import Store
from nbsched.transport import Bus, LogEntry
from nbsched.worker.backlog import Piece

log = logging.getLogger(__name__)

_T = TypeVar("_T")

BUDGET_BYTES = 512 * 1024 * 1024
_TRIES = 4
_TRY_AGAIN_S = 0.2
_UNREACHABLE_S = 1.0
_PARALLEL_PARTS = 4

_Key = tuple[JobId, int]
_INLINE = -1
"""Stands for all of an inline job's input; block 0 is the callable, as in the log."""


@dataclass(frozen=True)
class FileSource:
    """Bytes in the shared folder, where kernels read them."""

    name: str
    nbytes: int


Source: TypeAlias = bytes | FileSource


@dataclass(frozen=True)
class Input:
    """What a kernel needs to run tasks of a piece.

    Attributes:
        function: `pickling.Function`.
        data: the block that has the items up to task ``stop``; None when no item is
            needed.
    """

    function: Source
    block: int
    data: Source | None
    stop: int


class MissingInputError(Exception):
    """Input that is not there or that nobody with the cluster's key has signed."""


class InputCache:
    """Fetches, checks and keeps the input of jobs.

    ``on_loaded`` is called when something arrived; ``on_missing`` with a piece, the
    block (None: the callable, or everything) and the reason, when it never will.
    """

    def __init__(
        self,
        names: Names,
        key: Key,
        bus: Bus,
        store: Store,
        on_loaded: Callable[[], None],
        on_missing: Callable[[Piece, BlockRef | None, str], None],
        budget_bytes: int = BUDGET_BYTES,
    ) -> None:
        self._names = names
        self._key = key
        self._bus = bus
        self._store = store
        self._on_loaded = on_loaded
        self._on_missing = on_missing
        self._budget = budget_bytes
        self._size = 0
        self._kept: OrderedDict[_Key, bytes] = OrderedDict()
        self._inline_refs: dict[JobId, tuple[BlockRef, ...]] = {}
        self._fetches: dict[_Key, asyncio.Task[None]] = {}

    # ------------------------------------------------------------ asked by the pool

    def ready(self, piece: Piece) -> Input | None:
        """The input of the piece's first tasks, or None: it is being fetched then."""
        if piece.brief.inline and piece.job not in self._inline_refs:
            self._fetch((piece.job, _INLINE), piece, None)
            return None
        function = self._function(piece)
        if piece.breach is not None:
            return None if function is None else Input(function, 0, None, piece.stop)
        ref = self._ref(piece)
        if ref is None:
            self._on_missing(piece, None, "the leader named no block for it")
            return None
        data: Source | None
        if ref.file:
            data = self._file(piece, ref.file, ref.nbytes)
        else:
            data = self._get((piece.job, ref.block))
        if data is None and not (piece.brief.inline or ref.file):
            self._fetch((piece.job, ref.block), piece, ref)
        if function is None or data is None:
            return None
        return Input(function, ref.block, data, ref.first + ref.count)

    def fetch_ahead(self, piece: Piece) -> None:
        """Fetch the blocks of a piece that will be wanted soon."""
        if piece.brief.inline or self._size > self._budget // 2:
            return
        for ref in piece.blocks:
            wanted = ref.first < piece.stop and piece.start < ref.first + ref.count
            if wanted and not ref.file and (piece.job, ref.block) not in self._kept:
                self._fetch((piece.job, ref.block), piece, ref)

    def take_inline(self, brief: JobBrief, sealed: bytes) -> None:
        """Keep the input that came with a slice. Raises AuthenticationError."""
        if brief.job not in self._inline_refs:
            self._keep_inline(brief.job, sealed)

    def may_retry(self, brief: JobBrief) -> bool:
        """Whether the job has a retry policy, or may have one: it is not here now."""
        if brief.function_file:
            return True
        function = self._kept.get((brief.job, 0))
        return function is None or pickling.load_function(function).retry is not None

    def forget(self, job: JobId) -> None:
        """Drop all that is kept of a job."""
        self._inline_refs.pop(job, None)
        for key in [key for key in self._kept if key[0] == job]:
            self._size -= len(self._kept.pop(key))

    async def close(self) -> None:
        """Stop fetching."""
        fetches = list(self._fetches.values())
        for task in fetches:
            task.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)

    # ------------------------------------------------------------ keeping

    def _function(self, piece: Piece) -> Source | None:
        brief = piece.brief
        if brief.function_file:
            return self._file(piece, brief.function_file, brief.function_bytes)
        function = self._get((piece.job, 0))
        if function is None:
            self._fetch((piece.job, _INLINE if brief.inline else 0), piece, None)
        return function

    def _file(self, piece: Piece, name: str, nbytes: int) -> FileSource | None:
        """A file of this job: a record that names another job's is not to be believed."""
        if name.startswith(f"{piece.job}/in-"):
            return FileSource(name, nbytes)
        self._on_missing(piece, None, f"its record names {name!r}, which is not its own")
        return None

    def _ref(self, piece: Piece) -> BlockRef | None:
        inline = self._inline_refs.get(piece.job)
        for ref in inline if piece.brief.inline and inline is not None else piece.blocks:
            if ref.first <= piece.start < ref.first + ref.count:
                return ref
        return None

    def _get(self, key: _Key) -> bytes | None:
        data = self._kept.get(key)
        if data is not None:
            self._kept.move_to_end(key)
        return data

    def _keep(self, key: _Key, data: bytes) -> None:
        self._size += len(data) - len(self._kept.get(key, b""))
        self._kept[key] = data
        self._kept.move_to_end(key)
        while self._size > self._budget and len(self._kept) > 2:
            old, gone = self._kept.popitem(last=False)
            self._size -= len(gone)
            self._inline_refs.pop(old[0], None)  # inline input is fetched whole

    def _keep_inline(self, job: JobId, sealed: bytes) -> None:
        content, body = envelope.open_sealed(
            self._key, sealed, kind=Kind.INPUT, namespace=self._names.namespace
        )
        _check_job(content, job)
        whole = blocks.decode_inline(body)
        self._keep((job, 0), whole.function)
        refs = []
        for number, data in enumerate(whole.blocks, start=1):
            block = blocks.decode(data)
            refs.append(BlockRef(number, block.first, block.count, 1, len(data)))
            self._keep((job, number), data)
        self._inline_refs[job] = tuple(refs)

    # ------------------------------------------------------------ fetching

    def _fetch(self, key: _Key, piece: Piece, ref: BlockRef | None) -> None:
        """Start fetching, unless that is going on already."""
        if key not in self._fetches:
            work = self._run_fetch(key, piece, ref)
            self._fetches[key] = asyncio.create_task(work, name=f"fetch-{key[0]}-{key[1]}")

    async def _run_fetch(self, key: _Key, piece: Piece, ref: BlockRef | None) -> None:
        try:
            if key[1] == _INLINE:
                self._keep_inline(piece.job, await self._patiently(self._read_inline(piece.job)))
            else:
                self._keep(key, await self._read_block(piece, ref))
        except (MissingInputError, AuthenticationError, msgspec.DecodeError) as error:
            log.warning("input missing job=%s block=%s: %s", key[0], key[1], error)
            self._on_missing(piece, ref, str(error))
        except Exception as error:  # its tasks must not wait for ever
            log.exception("input cannot be read job=%s block=%s", key[0], key[1])
            self._on_missing(piece, ref, f"{type(error).__name__}: {error}")
        finally:
            self._fetches.pop(key, None)
        self._on_loaded()

    async def _read_block(self, piece: Piece, ref: BlockRef | None) -> bytes:
        expected = ref or BlockRef(0, 0, 0, piece.brief.function_parts, -1)
        found: list[bytes] = []
        for first in range(0, expected.parts, _PARALLEL_PARTS):
            numbers = range(first, min(first + _PARALLEL_PARTS, expected.parts))
            reads = (self._read_part(piece.brief, expected, number) for number in numbers)
            for part in await asyncio.gather(*reads, return_exceptions=True):
                if isinstance(part, BaseException):
                    raise part
                found.append(part)
        data = b"".join(found)
        if not found or (ref is not None and len(data) != ref.nbytes):
            raise MissingInputError(f"block {expected.block} is incomplete in the inputs log")
        return data

    async def _read_part(self, brief: JobBrief, expected: BlockRef, part: int) -> bytes:
        subject = self._names.input_part(brief.client, brief.job, expected.block, part)
        entry = await self._patiently(self._last_of(subject))
        content = envelope.read(
            self._key, entry.header, kind=Kind.INPUT, namespace=self._names.namespace
        )
        envelope.check_body(content, entry.data)
        _check_job(content, brief.job)
        if (content.first, content.count) != (expected.first, expected.count):
            raise MissingInputError(f"block {expected.block} holds other items than it should")
        if part == expected.parts - 1:
            ref = msgspec.msgpack.decode(content.meta, type=BlockRef)
            if (ref.block, ref.parts) != (expected.block, expected.parts):
                raise MissingInputError(f"block {expected.block} is not the one it claims to be")
        return entry.data

    def _last_of(self, subject: str) -> Callable[[], Coroutine[Any, Any, LogEntry | None]]:
        async def read() -> LogEntry | None:
            return await self._bus.last_of(self._names.inputs_log, subject)

        return read

    def _read_inline(self, job: JobId) -> Callable[[], Coroutine[Any, Any, bytes | None]]:
        async def read() -> bytes | None:
            found = await self._store.get(self._names.inline_input(job))
            return None if found is None else found.value

        return read

    async def _patiently(self, read: Callable[[], Coroutine[Any, Any, _T | None]]) -> _T:
        """Wait for an unreachable server for ever, for what should be there a little."""
        tries = 0
        while True:
            try:
                found = await read()
            except ConnectError as error:
                log.warning("input cannot be fetched, trying again: %s", error)
                await asyncio.sleep(_UNREACHABLE_S)
                continue
            if found is not None:
                return found
            tries += 1
            if tries == _TRIES:
                raise MissingInputError("the input is not in the cluster any more")
            await asyncio.sleep(_TRY_AGAIN_S)


def _check_job(content: Envelope, job: JobId) -> None:
    if content.job != job:
        raise AuthenticationError(f"The input of job {content.job!r} lies where {job!r}'s should.")

"""A job on its way to the servers, driven by the thread that called ``map``.

A small job is one transaction in etcd: its record, and its bytes beside it. A larger
one uploads the callable and the first block, then its record (the commit point), then
the rest while it already runs; writing the record again with the total seals it.
Items are consumed as they are uploaded, by one thread at a time; any other may `stop`
the upload meanwhile.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable

import msgspec

from nbsched.client.session import Session
from nbsched.client.tracker import JobTracker
from nbsched.errors import NbschedError, StoreUnreachableError
from nbsched.messages import BlockRef
from nbsched.model import CancelRequest, JobRecord, to_json
from nbsched.names import new_request_id
from nbsched.payload import blocks, envelope
from nbsched.payload.blocks import InlineInput, Packed
from nbsched.payload.envelope import Envelope, Kind
from nbsched.payload.frames import Frame
from nbsched.payload.sharedfolder import SHARE_BYTES
from nbsched.storage import Absent, ModifiedAt, Put
from nbsched.transport import LogFullError

log = logging.getLogger(__name__)

_IN_FLIGHT_BYTES = 8 * 1024 * 1024
_FIRST_ITEMS = 8192
_FULL_RETRY_S = 1.0
_STOP_S = 2.0
"""How long `stop` waits for blocks that are on their way."""
_INLINE_WAIT_S = 0.2
"""An iterator that is not through by then starts its job with what it has given."""


class Upload:
    """The upload of one job's items; `advance` moves it on.

    ``buffersize`` is how many items beyond the one that is asked for it may take, in
    blocks of a quarter of that; None: all, in blocks of the usual size.
    """

    def __init__(
        self,
        session: Session,
        record: JobRecord,
        function: Frame,
        items: Iterable[object],
        *,
        buffersize: int | None = None,
    ) -> None:
        self._session = session
        self._most_items = blocks.MAX_ITEMS if buffersize is None else max(1, buffersize // 4)
        self._ahead = None if buffersize is None else buffersize - self._most_items
        self._uploading = threading.Lock()
        self._uploader: int | None = None
        """The thread that holds the lock."""
        self._stopped = False
        self._record = record
        self._function = function
        self._packed = blocks.pack(items, session.settings.block_bytes, self._limit_items)
        self._number = 0
        self._count = 0
        self._revision = 0
        self._pending: deque[tuple[int, concurrent.futures.Future[None]]] = deque()
        self._in_flight = 0
        self.tracker: JobTracker | None = None

    def _limit_items(self) -> int:
        """Items of the next block. Until the job has begun they are few: the sooner the
        first ones are there, the sooner they run."""
        return self._most_items if self.tracker else min(self._most_items, _FIRST_ITEMS)

    # ------------------------------------------------------------ beginning

    def begin(self) -> JobTracker:
        """Commit the job, inline if all its items come soon and are small."""
        lazily = self._ahead is not None
        limit = self._session.settings.inline_bytes
        started = time.monotonic()
        first: list[Packed] = []
        size = self._function.nbytes
        for block in self._packed:
            first.append(block)
            size += block.frame.nbytes
            slow = time.monotonic() - started > _INLINE_WAIT_S
            if lazily or slow or size > limit:
                return self._begin_log(first)
        if size > limit:
            return self._begin_log(first)
        return self._begin_inline(first)

    def _begin_inline(self, first: list[Packed]) -> JobTracker:
        total = sum(block.count for block in first)
        whole = InlineInput(self._function.join(), tuple(block.frame.join() for block in first))
        content = self._envelope(0, total)
        sealed = envelope.seal(self._session.wire.key, content, blocks.encode_inline(whole))
        self._record = msgspec.structs.replace(self._record, inline=True, total=total)
        # Before the commit: outcomes can be quicker than its answer.
        tracker = self.tracker = self._session.track(self._record)
        self._session.run(self._commit(sealed))
        return tracker

    def _begin_log(self, first: list[Packed]) -> JobTracker:
        function = self._append(self._function, 0, 0, 0)
        self._settle(0)  # the leader relies on it: nothing of a job lies before its callable
        self._record = msgspec.structs.replace(
            self._record,
            function_parts=function.parts,
            function_file=function.file,
            function_bytes=function.nbytes,
        )
        for block in first:
            self._append_block(block)
        self._settle(0)
        tracker = self.tracker = self._session.track(self._record)
        tracker.uploaded(self._count)
        self._session.run(self._commit(None))
        return tracker

    async def _commit(self, inline: bytes | None) -> None:
        names, record = self._session.names, self._record
        key = names.job(record.id)
        changes = [Put(key, to_json(record))]
        if inline is not None:
            changes.append(Put(names.inline_input(record.id), inline))
        try:
            commit = await self._session.store.commit([Absent(key)], changes)
        except StoreUnreachableError:
            # The connection broke: whether the job was committed can only be read.
            stored = await self._session.store.get(key)
            if stored is None or stored.value != to_json(record):
                raise
            self._revision = stored.mod_revision
            return
        if not commit.succeeded:
            raise NbschedError(f"A job {record.id} exists already. Submit again.")
        self._revision = commit.revision

    # ------------------------------------------------------------ going on

    def advance(self, index: int, deadline: float | None = None) -> bool:
        """Upload until task ``index`` is known (-1: everything); False at the end.

        At the deadline (monotonic) it returns True, wherever it is then.

        Raises what the user's iterator raises, or NotPicklableError; the job is then
        sealed with what had been uploaded, and cancelled. After a Ctrl-C it is sealed,
        and the caller cancels it or lets it go on.
        """
        if self._uploader == threading.get_ident():
            raise NbschedError(f"The items of job {self._record.id} wait for its own results.")
        if not self._uploading.acquire(timeout=-1 if deadline is None else _left(deadline)):
            return True
        try:
            self._uploader = threading.get_ident()
            more = self._advance(index, deadline)
        except BaseException as error:
            self._abandon(cancel=not isinstance(error, KeyboardInterrupt))
            raise
        finally:
            self._uploader = None
            self._uploading.release()
        if self._stopped and more:
            self.stop()  # it came when the last look at it was over
            return False
        return more

    def _advance(self, index: int, deadline: float | None) -> bool:
        assert self.tracker is not None, "begin() comes first"
        goal = index if index < 0 or self._ahead is None else index + self._ahead
        if goal < 0:  # everything is wanted: small blocks would only cost
            self._most_items = blocks.MAX_ITEMS
        while self.tracker.total is None:
            if self._stopped:
                self._seal(time.monotonic() + _STOP_S)
                return False
            if 0 <= goal < self._count:
                self._settle(0, deadline)
                return True
            if deadline is not None and not _left(deadline):
                return True
            block = next(self._packed, None)
            if block is None:
                self._seal()
                return False
            self._append_block(block, deadline)
            self.tracker.uploaded(self._count)
        return False

    def stop(self) -> None:
        """Take no more items, and seal the job with those that are uploaded.

        Never waits for the user's iterator: a thread that uploads now does it next.
        """
        self._stopped = True
        if self._uploading.acquire(blocking=False):
            try:
                if self.tracker is not None and self.tracker.total is None:
                    self._seal(time.monotonic() + _STOP_S)
            finally:
                self._uploading.release()

    def _seal(self, deadline: float | None = None) -> None:
        """Write the number of tasks. Raises NbschedError when blocks are still on their
        way at the deadline."""
        assert self.tracker is not None, "begin() comes first"
        if not self._settle(0, deadline):
            raise NbschedError(
                f"Job {self._record.id} cannot be sealed: NATS does not take its last items."
            )
        self._record = msgspec.structs.replace(self._record, total=self._count)
        self._session.run(self._write_sealed())
        self.tracker.seal(self._count)

    async def _write_sealed(self) -> None:
        key = self._session.names.job(self._record.id)
        guard = ModifiedAt(key, self._revision)
        sealed = Put(key, to_json(self._record))
        try:
            commit = await self._session.store.commit([guard], [sealed])
            written = commit.succeeded
        except StoreUnreachableError:
            written = False  # or it was, and only the answer is missing
        if not written:
            stored = await self._session.store.get(key)
            if stored is None or stored.value != to_json(self._record):
                raise NbschedError(f"The record of job {self._record.id} was changed or deleted.")

    def _abandon(self, *, cancel: bool) -> None:
        """The items end with an error: let the job end, and stop what runs."""
        self._stopped = True
        assert self.tracker is not None, "begin() comes first"
        try:
            if self.tracker.total is None:
                self._seal(time.monotonic() + _STOP_S)
        except NbschedError as error:
            log.warning("job=%s could not be sealed: %s", self._record.id, error)
        if not cancel:
            return
        request = CancelRequest(id=new_request_id(), job=self._record.id, at=time.time())
        key = self._session.names.request(request.job, request.id)
        try:
            self._session.run(self._session.store.commit([], [Put(key, to_json(request))]))
        except NbschedError as error:
            log.warning("job=%s could not be cancelled: %s", self._record.id, error)

    # ------------------------------------------------------------ blocks

    def _append_block(self, block: Packed, deadline: float | None = None) -> None:
        """Append a block; waits while much is in flight."""
        self._append(block.frame, self._number + 1, block.first, block.count)
        # Before the wait, which Ctrl-C can end: the block is on its way.
        self._number += 1
        self._count = block.first + block.count
        self._settle(_IN_FLIGHT_BYTES, deadline)

    def _append(self, frame: Frame, number: int, first: int, count: int) -> BlockRef:
        """Store a block (0 is the callable) and append its messages, its name in the last."""
        file = self._share(frame, number)
        parts = [b""] if file else self._parts(frame.join())
        ref = BlockRef(number, first, count, len(parts), frame.nbytes, file)
        last = len(parts) - 1
        work = [
            (part, msgspec.msgpack.encode(ref) if position == last else b"")
            for position, part in enumerate(parts)
        ]
        size = sum(map(len, parts))
        self._pending.append((size, self._session.start(self._append_parts(ref, work))))
        self._in_flight += size
        return ref

    def _share(self, frame: Frame, number: int) -> str:
        """Write a large block to the shared folder; '' when that cannot be done."""
        folder = self._session.shared_folder
        if folder is None or frame.nbytes < SHARE_BYTES:
            return ""
        try:
            return folder.write(self._record.id, f"in-{number}", frame.chunks)
        except OSError as error:  # the log has room, or says what is to be done
            log.warning("job=%s goes through NATS: %s", self._record.id, error)
            return ""

    async def _append_parts(self, ref: BlockRef, work: list[tuple[bytes, bytes]]) -> None:
        session = self._session
        for position, (part, meta) in enumerate(work):
            head = self._envelope(ref.first, ref.count, meta)
            header = session.wire.write(head, part)
            subject = session.names.input_part(self._record.id, ref.block, position)
            await _append_patiently(session, subject, header, part)

    def _settle(self, allowed: int, deadline: float | None = None) -> bool:
        """Wait until at most ``allowed`` bytes are in flight; False at the deadline."""
        while self._pending and self._in_flight > allowed:
            size, future = self._pending[0]
            left = None if deadline is None else _left(deadline)
            if not concurrent.futures.wait([future], left).done:
                return False
            self._pending.popleft()
            self._in_flight -= size
            future.result()
        return True

    def _envelope(self, first: int, count: int, meta: bytes = b"") -> Envelope:
        return Envelope(
            Kind.INPUT,
            self._session.names.namespace,
            job=self._record.id,
            first=first,
            count=count,
            meta=meta,
        )

    def _parts(self, data: bytes) -> list[bytes]:
        size = min(self._session.settings.message_bytes, self._session.bus.max_payload // 2)
        return [data[at : at + size] for at in range(0, len(data), size)] or [b""]


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


async def _append_patiently(session: Session, subject: str, header: bytes, data: bytes) -> None:
    """Append; while the log is full, wait and say so."""
    while True:
        try:
            await session.bus.append(subject, header, data)
            return
        except LogFullError as error:
            log.warning("The upload waits for room: %s", error)
            await asyncio.sleep(_FULL_RETRY_S)

"""A job on its way to the servers, driven by the thread that called ``map``.

A small job is one transaction in etcd: its record, and its bytes beside it. A larger
one uploads the callable and the first block, then its record (the commit point), then
the rest while it already runs; writing the record again with the total seals it.
Items are consumed as they are uploaded, by one thread at a time; any other may `stop`
the upload meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar

import msgspec

from nbsched.client.committing import Uploaded, commit
from nbsched.client.incomplete import sealed_without_us
from nbsched.client.room import Waiting, patiently
from nbsched.client.sealing import Sending, seal_what_arrives, write_sealed
from nbsched.client.session import Session
from nbsched.client.tracker import JobTracker
from nbsched.errors import JobIncompleteError, NbschedError
from nbsched.messages import BlockRef
from nbsched.model import CancelRequest, JobRecord, to_json
from nbsched.names import new_request_id
from nbsched.payload import blocks, envelope
from nbsched.payload.blocks import InlineInput, Packed
from nbsched.payload.envelope import Envelope, Kind
from nbsched.payload.frames import Frame
from nbsched.payload.sharedfolder import SHARE_BYTES
from nbsched.storage import Put

log = logging.getLogger(__name__)

T = TypeVar("T")

_IN_FLIGHT_BYTES = 8 * 1024 * 1024
_FIRST_ITEMS = 8192
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
        self.tracker: JobTracker | None = None
        self._session = session
        self._most_items = blocks.MAX_ITEMS if buffersize is None else max(1, buffersize // 4)
        self._ahead = None if buffersize is None else buffersize - self._most_items
        self._uploading = threading.Lock()
        self._uploader: int | None = None
        """The thread that holds the lock."""
        self._stopped = False
        self._record = record
        self._function = function
        self._waiting = Waiting(record.id, session.notes, self._keep_files)
        self._packed = blocks.pack(items, session.settings.block_bytes, self._limit_items)
        self._number = 0
        self._count = 0
        self._revision = 0
        self._sending: deque[Sending] = deque()
        self._in_flight = 0
        self._had: Uploaded | None = None
        """While the job is not committed."""

    def __del__(self) -> None:
        """Nobody can ask for more items any more: the job ends with those that it has.

        Not a finalizer: what holds it must be collected together with it. This may be any
        thread, and must neither wait nor lock.
        """
        session, tracker = self._session, self.tracker
        if tracker is not None and tracker.committed and tracker.total is None:
            # Without this object: the user's iterator is not to be closed on that thread.
            known = (self._record, self._revision, self._count, tuple(self._sending))
            session.soon(
                lambda: session.complete(lambda: seal_what_arrives(session, tracker, *known))
            )

    def _limit_items(self) -> int:
        """Items of the next block. Until the job has begun they are few: the sooner the
        first ones are there, the sooner they run."""
        return self._most_items if self.tracker else min(self._most_items, _FIRST_ITEMS)

    # ------------------------------------------------------------ beginning

    def begin(self) -> JobTracker:
        """Commit the job, inline if all its items come soon and are small.

        While a server has no room or is away it waits, and says so.
        """
        try:
            return self._begin()
        except BaseException:
            for block in self._sending:  # they might wait for room for ever
                block.stored.cancel()
            raise

    def _begin(self) -> JobTracker:
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
        self._revision = self._run(commit(self._session, self._record, inline=sealed))
        tracker.committed = True
        return tracker

    def _begin_log(self, first: list[Packed]) -> JobTracker:
        announced = patiently(self._session, self._session.presence.announce, away=True)
        self._had = Uploaded(self._run(announced))
        function = self._append(self._function, 0, 0, 0)
        self._settle(0)  # the leader relies on it: nothing of a job lies before its callable
        self._record = msgspec.structs.replace(
            self._record,
            function_parts=function.parts,
            function_file=function.file,
            function_bytes=function.nbytes,
            watched=True,
        )
        for block in first:
            self._append_block(block)
        self._settle(0)
        tracker = self.tracker = self._session.track(self._record)
        tracker.uploaded(self._count)
        self._revision = self._run(commit(self._session, self._record, had=self._had))
        self._had = None
        tracker.committed = True
        return tracker

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
            self._abandon(cancel=not isinstance(error, (KeyboardInterrupt, JobIncompleteError)))
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
        if self.tracker.sealed_at is not None:
            raise sealed_without_us(self.tracker)
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
        record = msgspec.structs.replace(self._record, total=self._count)
        write = partial(write_sealed, self._session, self.tracker, record, self._revision)
        self._run(patiently(self._session, write, away=True), deadline)
        self.tracker.seal(self._count)

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
        # What lies in a file has an empty message, which must not count for nothing: nobody
        # would wait for it.
        size = sum(map(len, parts)) + len(parts)
        if self._had is not None:
            self._had.messages += len(parts)
            self._had.files = self._had.files or bool(file)
        stored = self._session.start(self._append_parts(ref, work))
        self._sending.append(Sending(first, size, stored))
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

    def _keep_files(self) -> None:
        """Show that somebody is to use the files: those of no job go after an hour."""
        if self._had is not None and self._had.files and self._session.shared_folder is not None:
            self._session.shared_folder.touch(self._record.id)

    async def _append_parts(self, ref: BlockRef, work: list[tuple[bytes, bytes]]) -> None:
        session = self._session
        for position, (part, meta) in enumerate(work):
            head = self._envelope(ref.first, ref.count, meta)
            header = session.wire.write(head, part)
            subject = session.names.input_part(
                self._record.client, self._record.id, ref.block, position
            )
            append = partial(session.bus.append, subject, header, part)
            await patiently(session, append)

    def _settle(self, allowed: int, deadline: float | None = None) -> bool:
        """Wait until at most ``allowed`` bytes are in flight; False at the deadline."""
        while self._sending and self._in_flight > allowed:
            block = self._sending[0]
            if not self._waiting.wait(block.stored, deadline):
                return False
            self._sending.popleft()
            self._in_flight -= block.nbytes
            try:
                block.stored.result()
            except BaseException:
                self._count = min(self._count, block.first)  # nothing can follow it
                raise
        return True

    def _run(self, work: Coroutine[Any, Any, T], deadline: float | None = None) -> T:
        """Run it on the I/O thread. Raises NbschedError at the deadline."""
        future = self._session.start(work)
        try:
            if not self._waiting.wait(future, deadline):
                why = self._session.notes.waits_for or "etcd does not answer"
                raise NbschedError(f"Job {self._record.id} cannot be sealed: {why}.")
            return future.result()
        except BaseException:
            future.cancel()
            raise

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

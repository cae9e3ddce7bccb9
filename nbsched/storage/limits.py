"""What one commit may contain, the same for every store.

The limits are etcd's defaults. The twin in memory keeps to them as well, so that
what passes there passes everywhere. Nothing here talks to a server.
"""

from __future__ import annotations

from collections.abc import Sequence

from nbsched.storage import Change, CreatedAt, Guard, ModifiedAt, Put

MAX_OPERATIONS = 128
"""etcd's ``--max-txn-ops``; guards and changes are counted separately."""
MAX_COMMIT_BYTES = 1536 * 1024
"""etcd's ``--max-request-bytes``, for a whole transaction."""
_OVERHEAD_BYTES = 64
"""What framing and lease id add to a change, rounded up."""


def check_commit(guards: Sequence[Guard], changes: Sequence[Change]) -> None:
    """Raise ValueError for a commit that no server would accept, or that is a bug.

    A guard at revision 0 would hold for an absent key, which is the opposite of what
    a fence is for.
    """
    for guard in guards:
        if isinstance(guard, (CreatedAt, ModifiedAt)) and guard.revision < 1:
            raise ValueError(
                f"The guard {guard!r} can never hold: revisions start at 1."
                " Use Absent to ask for a key that does not exist."
            )
    if len(guards) > MAX_OPERATIONS:
        raise ValueError(f"A commit has {len(guards)} guards; {MAX_OPERATIONS} are possible.")
    seen: set[str] = set()
    for change in changes:
        if change.key in seen:
            raise ValueError(
                f"The key {change.key!r} is changed twice in one commit; keep the last change only."
            )
        seen.add(change.key)
        if size_of(change) > MAX_COMMIT_BYTES:
            raise ValueError(
                f"The value for {change.key!r} has {size_of(change)} bytes with its key;"
                f" {MAX_COMMIT_BYTES} are possible. Put large values into a log, not into the"
                " store."
            )


def batches(guards: Sequence[Guard], changes: Sequence[Change]) -> list[Sequence[Change]]:
    """The transactions that a commit takes: one, or several when it has no guards.

    Raises:
        ValueError: the commit is guarded and does not fit into one transaction.
    """
    check_commit(guards, changes)
    cut = _cut(changes)
    if guards and len(cut) > 1:
        size = sum(map(size_of, changes))
        raise ValueError(
            f"A guarded commit has {len(changes)} changes with {size} bytes; {MAX_OPERATIONS}"
            f" changes and {MAX_COMMIT_BYTES} bytes are possible in one transaction. Cut it into"
            " several commits, each with the guards."
        )
    return cut


def check_watch(prefix: str, from_revision: int) -> None:
    """Raise ValueError for a watch that would miss changes, or see everybody's."""
    if not prefix:
        raise ValueError("A watch needs a prefix; without one it would see other clusters.")
    if from_revision < 1:
        raise ValueError(
            f"A watch from revision {from_revision} would begin at some time or other. List"
            " first, then watch from the snapshot's revision + 1."
        )


def size_of(change: Change) -> int:
    """Bytes that a change takes in a request, at most."""
    value = len(change.value) if isinstance(change, Put) else 0
    return len(change.key.encode()) + value + _OVERHEAD_BYTES


def _cut(changes: Sequence[Change]) -> list[Sequence[Change]]:
    cut: list[Sequence[Change]] = []
    start, size = 0, 0
    for at, change in enumerate(changes):
        added = size_of(change)
        if at > start and (at - start == MAX_OPERATIONS or size + added > MAX_COMMIT_BYTES):
            cut.append(changes[start:at])
            start, size = at, 0
        size += added
    return [*cut, changes[start:]]

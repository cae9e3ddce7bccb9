"""What a user is told of a job that lacks items."""

from __future__ import annotations

import warnings

from nbsched.client.tracker import JobTracker
from nbsched.errors import IncompleteJobWarning, JobIncompleteError
from nbsched.payload.largeparts import level_of_user


def warn_if_incomplete(tracker: JobTracker) -> None:
    """Issue an `IncompleteJobWarning` at the user's line if there may be more items."""
    if tracker.sealed_at is not None:
        warnings.warn(
            f"Job {tracker.id} is incomplete: its client died, or was away for upload_grace_s,"
            f" when {tracker.sealed_at} items had arrived. There are no results of later ones;"
            " submit those as another job.",
            IncompleteJobWarning,
            stacklevel=level_of_user(),
        )


def sealed_without_us(tracker: JobTracker) -> JobIncompleteError:
    total = tracker.sealed_at
    return JobIncompleteError(
        f"Job {tracker.id} has only the first {total} items: nothing was heard of this client for"
        " upload_grace_s while it uploaded, and the job was sealed without the rest. Its results"
        f" stay; submit the items from {total} on as another job."
    )

"""What tasks have printed, where the daemon must speak for a kernel that is dead.

Pure: adds text to outcomes that the daemon makes itself. Knows no kernel.
"""

from __future__ import annotations

import msgspec

from nbsched.messages import Outcome


def with_last_words(outcome: Outcome, body: bytes, printed: bytes) -> tuple[Outcome, bytes]:
    """An outcome of one task, with the end of what it printed as its stdout.

    A dead kernel's memory does not tell the two streams apart.
    """
    if not printed:
        return outcome, body
    # Cut anywhere, perhaps within a character.
    text = printed.decode(errors="ignore")
    data = text.encode()
    added = msgspec.structs.replace(outcome, output=(len(data), 0), printed=(len(text), 0))
    return added, body + data

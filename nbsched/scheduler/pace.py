"""Seconds per task, learned from outcomes as they come."""

from __future__ import annotations

_WEIGHT = 0.3
"""Of one task against all before it: what is new counts, one odd task does not decide."""


def learn(known: float | None, seconds: float, tasks: int) -> float:
    """The pace after ``tasks`` more, which took ``seconds`` together.

    They count as that many single tasks of equal length. So a first task that was slow,
    because it had to import something, is forgotten with the next slice and not after
    dozens of them.
    """
    measured = seconds / tasks
    if known is None:
        return measured
    return measured + (1 - _WEIGHT) ** tasks * (known - measured)

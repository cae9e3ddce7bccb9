"""A retry policy on its way to the kernels: what of tenacity's object can be pickled.

A ``tenacity.Retrying`` holds a thread-local and cannot be pickled; its strategies can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nbsched.errors import ConfigurationError

_STRATEGIES = ("stop", "wait", "retry")
_HOOKS = ("before", "after", "before_sleep", "retry_error_callback")


@dataclass(frozen=True)
class RetryPolicy:
    """tenacity's strategies and hooks; each takes a ``tenacity.RetryCallState``."""

    stop: Callable[[Any], bool]
    wait: Callable[[Any], float]
    retry: Callable[[Any], bool]
    before: Callable[[Any], None] | None = None
    after: Callable[[Any], None] | None = None
    before_sleep: Callable[[Any], None] | None = None
    retry_error_callback: Callable[[Any], Any] | None = None
    """Gives the result of a task that the policy has given up."""


def normalise(retry: object) -> int | RetryPolicy | None:
    """Turn the ``retry=`` option into what travels; None when nothing is retried.

    Raises:
        ConfigurationError: neither a number of retries nor a tenacity policy.
    """
    if retry is None:
        return None
    if isinstance(retry, int) and not isinstance(retry, bool) and retry >= 0:
        return retry or None
    if all(callable(getattr(retry, name, None)) for name in _STRATEGIES):
        parts = {name: getattr(retry, name) for name in _STRATEGIES}
        parts.update({name: getattr(retry, name, None) for name in _HOOKS})
        return RetryPolicy(**parts)
    raise ConfigurationError(
        f"retry={retry!r} is neither a number of retries (0 or more) nor a tenacity policy. Write"
        " retry=3, or retry=tenacity.Retrying(stop=..., wait=..., retry=...)."
    )


def describe(policy: int | RetryPolicy | None) -> str:
    """The policy in a few words, for the job's record."""
    if policy is None:
        return "none"
    if isinstance(policy, int):
        return f"{policy} retries"
    return "tenacity: " + ", ".join(type(getattr(policy, name)).__name__ for name in _STRATEGIES)

"""What an error of gRPC or etcd means: try elsewhere, log in again, or give up.

The only place that reads etcd's error texts. Every text for people about etcd is
written here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nbsched.errors import (
    ConfigurationError,
    ConnectError,
    StoreFullError,
    StoreUnreachableError,
)
from nbsched.settings import Settings
from nbsched.storage.etcd_rpc import grpc

_TRANSIENT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    # How a server that is shutting down, or a connection that breaks, may show.
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}
_NOTHING_APPLIED = (
    "failed to connect to all addresses",
    "etcdserver: no leader",
    "etcdserver: too many requests",
)
_ADVICE_CREDENTIALS = (
    "Check etcd_user and etcd_password / NBSCHED_ETCD_USER and NBSCHED_ETCD_PASSWORD."
)
_DETAILS_LIMIT = 300


class StreamEndedError(Exception):
    """A stream ended without the answer that was waited for."""


class LeaseNotFoundError(Exception):
    """The lease of a put is gone."""


class CompactedError(Exception):
    """The revision that was asked for has been compacted."""


def is_transient(error: Any) -> bool:
    """Whether another endpoint, or the same one later, may well succeed."""
    if isinstance(error, StreamEndedError):
        return True
    return error.code() in _TRANSIENT or "too many requests" in details(error)


def is_token_expired(error: Any) -> bool:
    """Whether the call was refused for its token; nothing was applied then.

    Simple tokens end after five idle minutes and with the server's process.
    """
    if isinstance(error, StreamEndedError):
        return False
    return bool(
        error.code() == grpc.StatusCode.UNAUTHENTICATED
        or "invalid auth token" in details(error)
        or "revision of auth store is old" in details(error)
    )


def surely_not_applied(error: Exception) -> bool:
    """Whether a change that failed like this certainly has not been made."""
    return details(error).startswith(_NOTHING_APPLIED)


def details(error: Any) -> str:
    """The cause in one line, for people."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return str(error) or type(error).__name__
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    text = " ".join(str(error.details() or error.code().name).split())
    return text[:_DETAILS_LIMIT]


def unreachable(
    addresses: Sequence[str], within_s: float, causes: Mapping[str, str]
) -> StoreUnreachableError:
    seen = "; ".join(f"{address}: {cause}" for address, cause in causes.items())
    return StoreUnreachableError(
        f"etcd does not answer at {', '.join(addresses)} within {within_s:g} s"
        f" ({seen or 'no answer in time'}). Check that etcd runs there and that etcd= /"
        " NBSCHED_ETCD names it."
    )


def commit_unknown(address: str, error: Exception) -> StoreUnreachableError:
    return StoreUnreachableError(
        f"etcd at {address} broke off a guarded commit ({details(error)}); it may have been"
        " applied or not. Read its keys again before repeating it."
    )


def version_refused(address: str, version: str) -> ConnectError:
    return ConnectError(
        f"etcd at {address} is version {version}; 3.5.0 to 3.5.2 can corrupt data, and 3.5.1 can"
        " lose a write it has acknowledged. Upgrade it to the newest 3.5 or later."
    )


def final(error: Any, address: str, settings: Settings) -> Exception:
    """The exception for an error that trying again would not change."""
    text = details(error)
    code = error.code()
    user = settings.etcd_user
    if "requested lease not found" in text:
        return LeaseNotFoundError(text)
    if "has been compacted" in text:
        return CompactedError(text)
    if "user name is empty" in text:
        return ConfigurationError(
            f"etcd at {address} asks for a user: authentication is on there, and none is"
            f" configured. {_ADVICE_CREDENTIALS}"
        )
    if "authentication is not enabled" in text:
        return ConfigurationError(
            f"etcd at {address} has authentication turned off, but etcd_user is {user!r}. Turn it"
            " on (etcdctl auth enable), or unset etcd_user / NBSCHED_ETCD_USER."
        )
    if "authentication failed" in text:
        return ConnectError(
            f"etcd at {address} refuses the user {user!r} or its password. {_ADVICE_CREDENTIALS}"
        )
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return ConnectError(f"etcd at {address} refuses the login: {text}. {_ADVICE_CREDENTIALS}")
    if code == grpc.StatusCode.PERMISSION_DENIED:
        return ConnectError(_not_allowed(address, settings))
    if "database space exceeded" in text:
        return StoreFullError(
            f"etcd at {address} is full and takes no writes ({text}). Compact and defragment it,"
            " then run 'etcdctl alarm disarm'."
        )
    if "request is too large" in text or "too many operations" in text:
        return ValueError(f"etcd at {address} allows less in one transaction than usual: {text}.")
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return ConnectError(
            f"The server at {address} does not speak the API of etcd 3 ({text}). Check etcd= /"
            " NBSCHED_ETCD."
        )
    return ConnectError(
        f"etcd at {address} refuses a call ({code.name}: {text}). Its log says more."
    )


def _not_allowed(address: str, settings: Settings) -> str:
    prefix = f"/nbsched/{settings.namespace}/"
    return (
        f"etcd at {address} does not let the user {settings.etcd_user!r} read and write under"
        f" {prefix}. Grant it: etcdctl role grant-permission ROLE --prefix=true readwrite {prefix}"
    )

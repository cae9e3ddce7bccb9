"""Every error that nbsched itself raises, and nothing else.

A task's own exception is never wrapped: it is raised again as itself, with the
remote traceback attached. Cancellation is ``concurrent.futures.CancelledError``
and waiting too long is the built-in ``TimeoutError``, as everywhere in Python.

    NbschedError
    ├── ConfigurationError        a setting, argument or key is missing or wrong
    │   ├── InvalidIdError        an id or namespace with characters it may not have
    │   └── NotCallableError      what is to be mapped or submitted is not callable
    ├── ConnectError              a server cannot be used
    │   ├── StoreUnreachableError     etcd
    │   │   └── StoreFullError            it has no room, and takes no writes
    │   ├── BusUnreachableError       NATS
    │   └── JetStreamMissingError     NATS without JetStream
    ├── LocalClusterError         this machine's own cluster does not start or stop
    ├── NoWorkersError            nobody is there to run the work
    ├── VersionMismatchError      client and workers have different Python versions
    ├── JobNotFoundError          no such job in this namespace
    │   └── JobForgottenError         there was one, and its data are gone
    ├── JobNotEndedError          a job that has not ended cannot be forgotten
    ├── ResultsLostError          a job has ended, and its results are not in the log
    ├── JobIncompleteError        a job was sealed before its client had sent all items
    ├── AuthenticationError       bytes that nobody with the cluster's key has signed
    ├── NotPicklableError         a callable or an item cannot be sent
    └── TaskError                 a task that ended without an exception of its own
        ├── TaskCrashedError          its kernel or host died, or it called sys.exit
        ├── TaskTimeoutError          it ran longer than task_timeout
        ├── TaskMemoryError           it needed more memory than its limit, memory=
        ├── RetriesExhaustedError     retry_if_result was never satisfied
        ├── InputNotReadableError     the worker cannot unpickle the callable or item
        ├── ResultNotPicklableError   its result or exception cannot be sent back
        ├── ResultTooLargeError       its result is over the worker's limit
        └── ResultNotReadableError    its result cannot be unpickled here

`LargeCallableWarning` and `IncompleteJobWarning` are ``UserWarning``s: the work goes on.

`RemoteTraceback` is no error of its own: it is the ``__cause__`` that shows where a
task's exception was raised.

Messages give the fact, the cause and the next step.
"""

from __future__ import annotations

from nbsched.attempts import PastAttempt


class NbschedError(Exception):
    """Base of all errors of nbsched."""


class ConfigurationError(NbschedError, ValueError):
    """A setting, an argument or a key is missing or wrong."""


class InvalidIdError(ConfigurationError):
    """An id has characters that cannot stand in a key or a subject."""


class NotCallableError(ConfigurationError, TypeError):
    """What is to be mapped or submitted is not callable."""


class ConnectError(NbschedError, ConnectionError):
    """A server cannot be used."""


class StoreUnreachableError(ConnectError):
    """etcd does not answer."""


class StoreFullError(StoreUnreachableError):
    """etcd has no room left: it answers questions, and takes no writes."""


class BusUnreachableError(ConnectError):
    """NATS does not answer."""


class JetStreamMissingError(ConnectError):
    """The NATS server runs without JetStream."""


class LocalClusterError(NbschedError):
    """This machine's own cluster does not start or stop."""


class NoWorkersError(NbschedError):
    """No worker is there to run the work."""


class VersionMismatchError(NbschedError):
    """Client and workers run different minor versions of Python."""


class JobNotFoundError(NbschedError, LookupError):
    """No such job in this namespace."""


class JobForgottenError(JobNotFoundError):
    """The job was removed, and with it what had not been loaded here yet."""


class ResultsLostError(NbschedError):
    """A job has ended, and not all of its outcomes are in the results log any more."""


class JobIncompleteError(NbschedError):
    """The job was sealed while its client was away: items that came later are not in it."""


class JobNotEndedError(NbschedError):
    """A job that has not ended cannot be forgotten."""


class AuthenticationError(NbschedError):
    """Bytes arrived that nobody with the cluster's key has signed."""


class NotPicklableError(NbschedError, TypeError):
    """A callable or an item cannot be sent to a worker."""


class TaskError(NbschedError):
    """A task ended without an exception of its own.

    ``index`` is the task's position in its job, ``details`` what is known beyond
    the message (``cause``, ``signal``, ``exit_code``, ``worker``, ``peak_bytes``,
    ``tail`` of its output, …), ``history`` its attempts of this round that ended
    before the user was told, this one last.
    """

    def __init__(
        self,
        message: str,
        *,
        index: int | None = None,
        details: dict[str, object] | None = None,
        history: tuple[PastAttempt, ...] = (),
    ) -> None:
        super().__init__(message)
        self.index = index
        self.details: dict[str, object] = dict(details or {})
        self.history = history


class TaskCrashedError(TaskError):
    """The task's kernel or host died, or the task called ``sys.exit``."""


class TaskTimeoutError(TaskError, TimeoutError):
    """The task ran longer than ``task_timeout``."""


class TaskMemoryError(TaskError, MemoryError):
    """The task needed more than its ``memory`` limit."""


class RetriesExhaustedError(TaskError):
    """The retry policy looks at results, and none of them satisfied it."""


class InputNotReadableError(TaskError):
    """The worker cannot unpickle the callable or the item."""


class ResultNotPicklableError(TaskError):
    """The task's result or exception cannot be sent back."""


class ResultTooLargeError(TaskError):
    """The task's result is over the worker's limit."""


class ResultNotReadableError(TaskError):
    """The task's result cannot be unpickled in this process."""


class RemoteTraceback(Exception):  # noqa: N818 - it is no error, it shows where one came from
    """The cause of a task's exception: the traceback as it was formatted on the worker."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text}"


class LargeCallableWarning(UserWarning):
    """A callable drags much data along: a large global, closure variable or default."""


class IncompleteJobWarning(UserWarning):
    """A job has results for a part of its items only: its client died while it uploaded."""

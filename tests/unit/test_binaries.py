"""Which etcd and nats-server local mode runs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from nbsched.errors import LocalClusterError
from nbsched.local import binaries


def program(folder: Path, name: str, output: str) -> Path:
    """Something that is no script; `say_version` reads its version out of it."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(b"\x7fELF" + output.encode())
    path.chmod(stat.S_IRWXU)
    return path


@pytest.fixture
def say_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the fake binaries answer ``--version`` with what they contain."""

    def read(binary: Path) -> binaries.Version | None:
        match = binaries._VERSION.search(binary.read_bytes()[4:])
        return None if match is None else (int(match[1]), int(match[2]), int(match[3]))

    monkeypatch.setattr(binaries, "version_of", read)


def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_etcd_in_package", lambda: None)
    monkeypatch.setattr(binaries, "_nats_in_environment", lambda: None)


@pytest.mark.usefixtures("say_version")
def test_new_enough_etcd_on_path_is_preferred_to_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = program(tmp_path, "etcd", "etcd Version: 3.5.17\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert binaries.find_etcd() == mine


@pytest.mark.usefixtures("say_version")
def test_old_etcd_on_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "a", "etcd", "etcd Version: 3.5.2\n")
    newer = program(tmp_path / "b", "etcd", "etcd Version: 3.5.3\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'a'}{os.pathsep}{tmp_path / 'b'}")
    assert binaries.find_etcd() == newer


@pytest.mark.usefixtures("say_version")
def test_old_nats_server_on_path_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = program(tmp_path, "nats-server", "nats-server: v2.9.25\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert binaries.find_nats_server() != old


def test_wrapper_script_on_path_is_resolved_to_the_binary_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "etcd"
    script.write_text("#!/bin/sh\necho etcd Version: 3.9.9\n")
    script.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = binaries.find_etcd()
    assert found.parent.name == "etcdbin"
    assert binaries.version_of(found) is not None


def test_packaged_nats_server_is_found_without_its_folder_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = binaries.find_nats_server()
    version = binaries.version_of(found)
    assert version is not None
    assert version >= binaries.NATS_MINIMUM


def test_packaged_nats_server_is_found_through_the_records_of_its_package() -> None:
    found = binaries._nats_in_records()
    assert found is not None
    assert found.name == "nats-server"


@pytest.mark.parametrize("find", [binaries.find_etcd, binaries.find_nats_server])
def test_missing_server_names_the_extra_to_install(
    find: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    without_packages(monkeypatch)
    assert callable(find)
    with pytest.raises(LocalClusterError, match=r"pip install 'nbsched\[local\]'"):
        find()


@pytest.mark.usefixtures("say_version")
def test_error_names_the_servers_that_are_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "etcd", "etcd Version: 3.4.30\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    without_packages(monkeypatch)
    with pytest.raises(LocalClusterError, match=r"etcd is 3\.4\.30"):
        binaries.find_etcd()

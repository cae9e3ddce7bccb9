"""Large payloads as files: private, whole, and nobody else's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nbsched.errors import ConfigurationError
from nbsched.payload import sharedfolder
from nbsched.payload.sharedfolder import SharedFolder


@pytest.fixture
def folder(tmp_path: Path) -> SharedFolder:
    return SharedFolder.open(tmp_path / "shared")


def test_what_is_written_in_any_number_of_pieces_is_read_in_one(folder: SharedFolder) -> None:
    for count in (1, 2, 511, 512, 513, 3000):
        chunks = [bytes([i % 256]) * (i % 7) for i in range(count)]
        name = folder.write("job", "x", chunks)
        assert bytes(folder.map(name)) == b"".join(chunks)


def test_a_part_of_a_file_can_be_read(folder: SharedFolder) -> None:
    data = os.urandom(20_000)
    name = folder.write("job", "x", [data])
    assert bytes(folder.map(name, 5_000, 15_000)) == data[5_000:15_000]


def test_who_writes_into_a_mapping_changes_his_own_copy(folder: SharedFolder) -> None:
    name = folder.write("job", "x", [bytes(100)])
    mine = folder.map(name)
    mine[0] = 1
    assert folder.map(name)[0] == 0


def test_a_mapping_outlives_its_file(folder: SharedFolder) -> None:
    name = folder.write("job", "x", [b"kept"])
    mapped = folder.map(name)
    folder.remove("job")
    assert bytes(mapped) == b"kept"
    with pytest.raises(FileNotFoundError):
        folder.map(name)


def test_a_file_that_is_not_whole_is_not_read(folder: SharedFolder, tmp_path: Path) -> None:
    name = folder.write("job", "x", [bytes(100)])
    os.truncate(tmp_path / "shared" / name, 60)
    with pytest.raises(FileNotFoundError, match="60 bytes"):
        folder.map(name, 0, 100)


@pytest.mark.parametrize("name", ["../x", "job/../../x", "/etc/passwd", "job", "a/b/c", "job/."])
def test_a_name_that_leads_elsewhere_is_refused(folder: SharedFolder, name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no name"):
        folder.map(name)


def test_nothing_is_left_of_a_file_that_cannot_be_written(
    folder: SharedFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, chunks: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(OSError, match="No space"):
        folder.write("job", "x", [b"data"])
    assert list((tmp_path / "shared" / "job").iterdir()) == []


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o777)
    with pytest.raises(ConfigurationError, match="chmod 700"):
        SharedFolder.open(tmp_path)


def test_jobs_that_nothing_is_added_to_are_found_and_removed(
    folder: SharedFolder, tmp_path: Path
) -> None:
    old = folder.write("old", "x", [b"1"])
    new = folder.write("new", "x", [b"2"])
    os.utime(tmp_path / "shared" / "old", (0, 0))
    assert folder.unchanged_for(3600) == ["old"]
    folder.remove("old")
    assert folder.unchanged_for(3600) == []
    assert bytes(folder.map(new)) == b"2"
    with pytest.raises(FileNotFoundError):
        folder.map(old)


@pytest.mark.parametrize("other_cluster", [("other", "key1"), ("one", "key2")])
def test_each_cluster_has_a_part_of_the_folder_for_itself(
    other_cluster: tuple[str, str], tmp_path: Path
) -> None:
    """Its namespace tells it from others on the same servers, its key from those elsewhere."""
    one = SharedFolder.of(str(tmp_path / "shared"), "one", "key1")
    other = SharedFolder.of(str(tmp_path / "shared"), *other_cluster)
    assert one is not None
    assert other is not None
    name = one.write("job", "x", [b"1"])
    assert other.unchanged_for(-60) == []
    other.remove("job")
    assert one.unchanged_for(-60) == ["job"]
    assert bytes(one.map(name)) == b"1"
    assert SharedFolder.of(None, "one", "key1") is None


def test_more_files_than_may_be_mapped_are_read_instead(
    folder: SharedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharedfolder, "_MOST_MAPPED", sharedfolder._Mappings.count + 3)
    names = [folder.write("job", "x", [bytes([i]) * 10_000]) for i in range(10)]
    before = len(os.listdir("/proc/self/fd"))
    kept = [folder.map(name, 1) for name in names]
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    for i, data in enumerate(kept):
        assert bytes(data) == bytes([i]) * 9_999
        data[0] = 255
    assert all(folder.map(name)[1] == i for i, name in enumerate(names))
    count = sharedfolder._Mappings.count
    del kept, data
    assert sharedfolder._Mappings.count < count


def test_the_last_room_on_the_disk_is_left_to_the_servers(
    folder: SharedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharedfolder, "_LEAVE_BYTES", 2**62)
    statvfs = os.statvfs

    class _Full:
        def __init__(self, path: Path) -> None:
            self._real = statvfs(path)
            self.f_bavail = 1

        def __getattr__(self, name: str) -> int:
            return int(getattr(self._real, name))

    monkeypatch.setattr(os, "statvfs", _Full)
    with pytest.raises(OSError, match="left"):
        folder.write("job", "x", [b"data"])

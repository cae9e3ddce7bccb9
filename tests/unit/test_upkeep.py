"""What the supervisor of a local cluster does about servers without room."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from nbsched.local import etcdserver, natsserver, upkeep
from nbsched.local.runtime import Identity, NotReadyError, RefusedError
from nbsched.local.upkeep import Upkeep

WHO = Identity(etcd_port=1, nats_port=2, etcd_password="e", nats_password="n")


class _Disk(NamedTuple):
    total: int
    used: int
    free: int


class Place:
    """An upkeep whose servers are functions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.etcd_error: Exception | None = None
        self.nats_error = ""
        self.restarts = 0
        self.now = 0.0
        monkeypatch.setattr(upkeep, "tend", self._tend)
        monkeypatch.setattr(natsserver, "write_error", lambda *_: self.nats_error)
        monkeypatch.setattr(upkeep, "_ROOM_BYTES", 0)  # there is room
        self.upkeep = Upkeep("t", folder, self._restart, clock=lambda: self.now)

    def _tend(self, identity: Identity) -> None:
        if self.etcd_error is not None:
            raise self.etcd_error

    def _restart(self) -> None:
        self.restarts += 1

    def look(self) -> None:
        self.upkeep.look(WHO)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Place:
    return Place(monkeypatch, tmp_path)


@pytest.mark.parametrize("error", [RefusedError("no"), NotReadyError("not yet")])
def test_nats_is_looked_after_when_etcd_cannot_be(place: Place, error: Exception) -> None:
    place.etcd_error, place.nats_error = error, "no space left on device"
    place.look()
    assert place.restarts == 1


def test_a_nats_that_a_new_start_does_not_help_is_started_ever_less_often(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.nats_error = "no inodes"
    restarted_at = []
    for now in range(0, 2000, 5):
        place.now, before = float(now), place.restarts
        place.look()
        if place.restarts > before:
            restarted_at.append(now)
    assert restarted_at == [0, 10, 70, 670, 1270, 1870]
    assert "still takes nothing (new starts: 1): no inodes" in caplog.text
    assert len(caplog.records) == 6  # the fault, and each new start that was in vain


def test_a_nats_that_has_been_well_since_is_started_at_once(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    for error in ("full", "", "full"):
        place.nats_error = error
        place.look()
    assert place.restarts == 2
    assert "takes messages again" in caplog.text


def test_a_nats_whose_disk_is_full_is_left_alone_until_there_is_room(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.nats_error = "full"
    monkeypatch.setattr(upkeep.shutil, "disk_usage", lambda _: _Disk(10**9, 10**9, 0))
    monkeypatch.setattr(upkeep, "_ROOM_BYTES", 256 * 1024**2)
    place.look()
    assert place.restarts == 0
    monkeypatch.setattr(upkeep.shutil, "disk_usage", lambda _: _Disk(10**9, 0, 10**9))
    place.look()
    assert place.restarts == 1


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ("etcdserver: mvcc: required revision has been compacted", True),
        ("permission denied", False),
    ],
)
def test_a_history_that_is_gone_already_is_no_error(
    monkeypatch: pytest.MonkeyPatch, answer: str, accepted: bool
) -> None:
    def post(port: int, path: str, *_: object, **__: object) -> dict[str, object]:
        if path == "kv/compaction":
            raise RefusedError(f"etcd refused {path}: {answer}")
        return {"header": {"revision": "7"}}

    monkeypatch.setattr(etcdserver, "_post", post)
    if accepted:
        etcdserver.compact(WHO, "token")
    else:
        with pytest.raises(RefusedError):
            etcdserver.compact(WHO, "token")

"""Where settings come from, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbsched.errors import ConfigurationError, InvalidIdError
from nbsched.settings import Settings, load


def test_arguments_beat_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('etcd = ["file:1"]\nnats = "file:2"\nnamespace = "file"\nblock_bytes = 7\n')
    environ = {
        "NBSCHED_CONFIG": str(file),
        "NBSCHED_NATS": "env:2,env:3",
        "NBSCHED_NAMESPACE": "env",
    }
    settings = load({"namespace": "argument", "etcd": None}, environ)
    assert settings.namespace == "argument"
    assert settings.nats == ("env:2", "env:3")
    assert settings.etcd == ("file:1",)
    assert settings.block_bytes == 7
    assert settings.inline_bytes == Settings().inline_bytes


def test_nothing_configured_means_this_machine(tmp_path: Path) -> None:
    assert not load({}, {"XDG_CONFIG_HOME": str(tmp_path)}).connected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lease_ttl_s": 0}, "lease_ttl_s"),
        ({"connect_timeout_s": "soon"}, "wrong type"),
        ({"colour": "red"}, "colour"),
        ({"etcd": 7}, "host:port"),
        ({"stream_replicas": 9}, "1 to 5"),
        ({"retention_s": 0.0}, r"^retention_s is 0\.0; it must be greater than 0\.$"),
        ({"retention_s": "nan"}, "^retention_s is nan; it must be greater than 0"),
        ({"lease_ttl_s": "inf"}, "^lease_ttl_s is inf; it can be at most 1000000000"),
        ({"connect_timeout_s": float("inf")}, "^connect_timeout_s is inf"),
        ({"namespace": "a.b"}, "^(?!.*wrong type)"),
    ],
)
def test_a_wrong_setting_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load(values, {"XDG_CONFIG_HOME": "/nonexistent"})


def test_jobs_can_be_kept_for_ever() -> None:
    environ = {"XDG_CONFIG_HOME": "/nonexistent", "NBSCHED_RETENTION_S": "inf"}
    assert load({}, environ).retention_s == float("inf")


def test_a_missing_or_broken_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="NBSCHED_CONFIG"):
        load({}, {"NBSCHED_CONFIG": str(tmp_path / "none.toml")})
    (tmp_path / "bad.toml").write_text("etcd = [")
    with pytest.raises(ConfigurationError, match="not valid TOML"):
        load({}, {"NBSCHED_CONFIG": str(tmp_path / "bad.toml")})


def test_a_namespace_that_cannot_stand_in_a_key() -> None:
    with pytest.raises(InvalidIdError):
        Settings(namespace="a.b")


def test_the_repr_shows_no_secret() -> None:
    text = repr(Settings(etcd=("h:1",), etcd_password="hunter2", nats_token="tok"))
    assert "hunter2" not in text
    assert "tok'" not in text
    assert "h:1" in text


def test_only_one_kind_of_server_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="NBSCHED_NATS"):
        load({"etcd": "h:1"}, {"XDG_CONFIG_HOME": "/nonexistent"}).require_servers()

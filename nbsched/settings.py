"""All settings, and the only place that reads the environment and the config file.

Arguments beat ``NBSCHED_*`` variables, those beat the config file
(``$NBSCHED_CONFIG``, else ``~/.config/nbsched/config.toml``), and that beats the
defaults. A variable is named like its field: ``NBSCHED_ETCD``, ``NBSCHED_LEASE_TTL_S``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from nbsched.errors import ConfigurationError
from nbsched.names import check_id
from nbsched.payload.envelope import Key

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MOST_S = 1e9
"""Three decades. Servers and sockets take no endless time, nor one of much more."""
_ENDLESS = {"retention_s"}
_SECRETS = {"etcd_password", "nats_password", "nats_token"}

ProgressMode = Literal["auto", "text", "tqdm", "off"]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One cluster as seen from one process. Seconds end in ``_s``, bytes in ``_bytes``."""

    etcd: tuple[str, ...] = ()
    """Endpoints, ``host:port`` or ``http(s)://host:port``."""
    nats: tuple[str, ...] = ()
    """Servers, ``nats://host:port`` or ``tls://host:port``."""
    namespace: str = "default"

    etcd_user: str | None = None
    etcd_password: str | None = None
    etcd_ca: str | None = None
    """Path of a CA certificate (PEM); turns TLS on."""
    etcd_cert: str | None = None
    etcd_key: str | None = None
    nats_user: str | None = None
    nats_password: str | None = None
    nats_token: str | None = None
    nats_creds: str | None = None
    """Path of a NATS ``.creds`` file."""
    nats_ca: str | None = None
    nats_cert: str | None = None
    nats_key: str | None = None
    key_file: str | None = None
    """File with the key that signs payloads. Default: the key that lies in etcd."""

    connect_timeout_s: float = 5.0
    """Until a server that does not answer is an error."""
    worker_timeout_s: float = 10.0
    """Until a cluster without workers is an error."""
    lease_ttl_s: float = 5.0
    """A dead daemon is noticed after this long. etcd's least is about 2 s by default."""
    cancel_grace_s: float = 2.0
    """Between SIGINT and SIGKILL for a task that is cancelled or out of time."""
    upload_grace_s: float = 300.0
    """A client that has been away for so long while it uploads is taken for dead: its job
    then has the tasks that have arrived. The leader's setting counts."""
    lost_data_grace_s: float = 300.0
    """Jobs whose data NATS has lost are forgotten so long after that was noticed: until then
    it can be started again with the right disk. The leader's setting counts."""
    inline_bytes: int = 64 * 1024
    """Jobs up to this size travel in etcd, in one write."""
    block_bytes: int = 256 * 1024
    """Items are uploaded in blocks of about this size."""
    message_bytes: int = 512 * 1024
    """Larger payloads are cut: half of what NATS takes at its default limit."""
    stream_replicas: int = 1
    """Copies of the two JetStream logs, for whoever creates them: 3 on a NATS cluster."""
    shared_folder: str | None = None
    """Folder that client and workers all see under this path, and that nobody else can
    write to: large payloads lie there instead of going through NATS. This machine's own
    cluster has one; on several hosts it may be a network file system."""
    retention_s: float = 24 * 3600
    """A job, its inputs and results are deleted so long after its end; ``inf`` keeps them
    until somebody forgets them. The leader's setting counts: give all workers the same."""
    max_result_bytes: int = 1024**3
    """A result over this limit is an error of its task."""
    progress: ProgressMode = "auto"
    local: bool = False
    """The servers are this machine's own: an etcd older than 3.5.3 is accepted."""

    def __post_init__(self) -> None:
        check_id(self.namespace, "namespace")
        if self.stream_replicas not in range(1, 6):
            raise ConfigurationError(
                f"stream_replicas is {self.stream_replicas}; JetStream keeps 1 to 5 copies."
            )
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if name.endswith(("_s", "_bytes")) and not value > 0:
                raise ConfigurationError(f"{name} is {value!r}; it must be greater than 0.")
            if name.endswith("_s") and value > _MOST_S and name not in _ENDLESS:
                raise ConfigurationError(f"{name} is {value!r}; it can be at most {_MOST_S:.0f}.")

    def __repr__(self) -> str:
        """Only what is set, and no secret: a repr ends up in notebooks and logs."""
        shown = []
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                text = "'…'" if field.name in _SECRETS and value else repr(value)
                shown.append(f"{field.name}={text}")
        return f"Settings({', '.join(shown)})"

    @property
    def connected(self) -> bool:
        """Whether servers are named; otherwise this machine's own cluster is meant."""
        return bool(self.etcd or self.nats)

    def require_servers(self) -> None:
        """Raise ConfigurationError unless both kinds of server are named."""
        for name, value in (("etcd", self.etcd), ("nats", self.nats)):
            if not value:
                raise ConfigurationError(
                    f"No {name} server is configured. Pass {name}=, set NBSCHED_{name.upper()}, or"
                    " configure neither etcd nor nats to use this machine's local cluster."
                )

    def explicit_key(self) -> Key | None:
        """The key of ``key_file``, if one is set."""
        if self.key_file is None:
            return None
        try:
            return Key.from_text(Path(self.key_file).expanduser().read_text())
        except OSError as error:
            raise ConfigurationError(
                f"The key file {self.key_file} cannot be read: {error.strerror}. Check key_file /"
                " NBSCHED_KEY_FILE."
            ) from error


_LISTS = {"etcd", "nats"}


def load(
    arguments: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Merge arguments, environment, config file and defaults.

    ``arguments`` that are None count as absent. Lists of servers may be given as one
    text, separated by commas.

    Raises:
        ConfigurationError: an unknown name or a value of the wrong type.
    """
    environ = os.environ if environ is None else environ
    merged: dict[str, Any] = _from_file(environ)
    merged.update(_from_environment(environ))
    merged.update({k: v for k, v in (arguments or {}).items() if v is not None})
    for name in _LISTS & merged.keys():
        merged[name] = _as_list(merged[name])
    return _convert(merged, "settings")


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for name in Settings.__struct_fields__:
        value = environ.get(f"NBSCHED_{name.upper()}")
        if value:
            found[name] = value
    return found


def _from_file(environ: Mapping[str, str]) -> dict[str, Any]:
    named = environ.get("NBSCHED_CONFIG")
    home = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    path = Path(named or Path(home) / "nbsched" / "config.toml")
    try:
        text = path.read_text()
    except OSError as error:
        if named is None:
            return {}
        raise ConfigurationError(
            f"The config file {path} cannot be read: {error.strerror}. Check NBSCHED_CONFIG."
        ) from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"The config file {path} is not valid TOML: {error}.") from error
    return dict(values)


def _as_list(value: object) -> list[str]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, (list, tuple)):
        return [str(part) for part in value]
    raise ConfigurationError(f"{value!r} is not a list of servers; write 'host:port,host:port'.")


def _convert(values: dict[str, Any], what: str) -> Settings:
    unknown = sorted(values.keys() - set(Settings.__struct_fields__))
    if unknown:
        known = ", ".join(Settings.__struct_fields__)
        raise ConfigurationError(f"There is no setting {unknown[0]!r}. Settings: {known}.")
    try:
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigurationError):
            raise error.__cause__ from None  # a value of the right type: it says itself why
        raise ConfigurationError(f"A value in the {what} has the wrong type: {error}.") from error

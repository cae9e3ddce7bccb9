"""Which etcd servers there are and how each is reached: addresses, TLS, channels.

Sends nothing by itself. What to do when a server fails is decided in `etcd_calls`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nbsched.errors import ConfigurationError, ConnectError
from nbsched.settings import Settings
from nbsched.storage.etcd_rpc import grpc, rpc_pb2_grpc

_DEFAULT_PORT = 2379
_KEEPALIVE_S = 10
"""etcd takes pings at most every 5 s (``--grpc-keepalive-min-time``)."""
_KEEPALIVE_TIMEOUT_S = 5


class Endpoint:
    """One server and the channel to it, which connects when it is first used."""

    def __init__(self, address: str, channel: Any) -> None:
        self.address = address
        self.refused: ConnectError | None = None
        """Why this server must not be used at all."""
        self._channel = channel
        self.kv = rpc_pb2_grpc.KVStub(channel)
        self.leases = rpc_pb2_grpc.LeaseStub(channel)
        self.watches = rpc_pb2_grpc.WatchStub(channel)
        self.auth = rpc_pb2_grpc.AuthStub(channel)
        self.maintenance = rpc_pb2_grpc.MaintenanceStub(channel)

    @property
    def connected(self) -> bool:
        return bool(self._channel.get_state() == grpc.ChannelConnectivity.READY)

    async def close(self) -> None:
        await self._channel.close()


def open_endpoints(settings: Settings) -> tuple[Endpoint, ...]:
    """An endpoint for each server of the settings. Needs a running event loop.

    Raises:
        ConfigurationError: no server, an address that is none, half a set of
            credentials, or a certificate that cannot be read.
    """
    _check_credentials(settings)
    targets = [_parse(text, settings) for text in dict.fromkeys(settings.etcd)]
    if not targets:
        raise ConfigurationError("No etcd server is configured. Pass etcd= or set NBSCHED_ETCD.")
    credentials = _tls_credentials(settings) if any(tls for _, tls in targets) else None
    options = _options(settings)
    return tuple(
        Endpoint(
            address,
            grpc.aio.secure_channel(address, credentials, options=options)
            if tls
            else grpc.aio.insecure_channel(address, options=options),
        )
        for address, tls in targets
    )


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", _KEEPALIVE_S * 1000),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_S * 1000),
        # A ping of gRPC's own (it measures bandwidth) that is under way holds up those of
        # keepalive, and waits for a minute by default.
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_S * 1000),
        # etcd takes pings without a call for an attack: it ends the connection after
        # three of them, and gRPC complains on stderr.
        ("grpc.keepalive_permit_without_calls", 0),
        # An idle watch sends nothing: without this gRPC stops pinging after two.
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # In spite of its name this bounds one attempt to connect.
        ("grpc.min_reconnect_backoff_ms", max(1, round(settings.connect_timeout_s * 1000))),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # Channels with the same options would share a connection, and its fate.
        ("grpc.use_local_subchannel_pool", 1),
        # A proxy for web pages is no way to one's own etcd.
        ("grpc.enable_http_proxy", 0),
    ]


def _parse(text: str, settings: Settings) -> tuple[str, bool]:
    """The address ``host:port`` of an endpoint, and whether it speaks TLS."""
    scheme, _, rest = text.strip().rpartition("://")
    host, port = _split_port(rest.rstrip("/"))
    if not host or "/" in rest.rstrip("/") or scheme not in ("", "http", "https"):
        raise ConfigurationError(
            f"{text!r} is not an etcd server. Write host:port, http://host:port or"
            " https://host:port in etcd= / NBSCHED_ETCD."
        )
    certificates = settings.etcd_ca or settings.etcd_cert
    if scheme == "http" and certificates:
        raise ConfigurationError(
            f"The etcd server {text!r} is named with http://, but certificates are configured."
            " Write https://, or unset etcd_ca, etcd_cert and etcd_key."
        )
    return f"{host}:{port}", scheme == "https" or bool(certificates)


def _split_port(text: str) -> tuple[str, int]:
    """Host and port; the host is empty when the text is not an address."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(_DEFAULT_PORT)
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host.replace(":", "/")
    if not port.isdecimal() or not 0 < int(port) < 65536 or "/" in bare or " " in bare:
        return "", 0
    return host, int(port)


def _check_credentials(settings: Settings) -> None:
    pairs = (("etcd_user", "etcd_password"), ("etcd_cert", "etcd_key"))
    for first, second in pairs:
        given = {name for name in (first, second) if getattr(settings, name)}
        if len(given) == 1:
            missing = second if first in given else first
            raise ConfigurationError(
                f"{given.pop()} is set without {missing}. Set both, or NBSCHED_{missing.upper()}."
            )


def _tls_credentials(settings: Settings) -> Any:
    return grpc.ssl_channel_credentials(
        root_certificates=_read("etcd_ca", settings.etcd_ca),
        private_key=_read("etcd_key", settings.etcd_key),
        certificate_chain=_read("etcd_cert", settings.etcd_cert),
    )


def _read(name: str, path: str | None) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"The file {path} cannot be read: {error.strerror}. Check {name} /"
            f" NBSCHED_{name.upper()}."
        ) from error

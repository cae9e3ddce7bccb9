"""The NATS server of a local cluster: configuration and readiness.

Nothing here waits for the server to come up.
"""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import msgspec

from nbsched.local.home import Home, write_private
from nbsched.local.process import Command
from nbsched.local.runtime import NATS_USER, Identity, NotReadyError, Plan, RefusedError

_ANSWER_TIMEOUT_S = 2.0
_PURGE_FAILED = 10051
_GIB = 1024**3


def command(plan: Plan, home: Home, identity: Identity, *, lock: int) -> Command:
    """Writes the server's configuration; the password is in that file alone."""
    store = home.data("nats")
    store.mkdir(mode=0o700, exist_ok=True)
    config = home.path / "nats.conf"
    write_private(config, _config(identity, store).encode())
    argv = [plan.nats_binary, "--config", str(config)]
    return Command(argv=argv, cwd=str(home.path), keep=(lock,))


def _config(identity: Identity, store: Path) -> str:
    quoted = msgspec.json.encode(str(store)).decode()
    return f"""\
server_name: nbsched-local
listen: "127.0.0.1:{identity.nats_port}"
authorization {{
  user: "{NATS_USER}"
  password: "{identity.nats_password}"
}}
jetstream {{
  store_dir: {quoted}
  max_mem: 256MB
  max_file: {_log_room(store)}
}}
"""


def _log_room(store: Path) -> int:
    """Bytes for the logs: what they take now, and most of what is free."""
    used = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    return max(_GIB, used + shutil.disk_usage(store).free * 4 // 5)


def check(identity: Identity) -> None:
    """Raise NotReadyError unless the server greets. It opens its port last, when
    JetStream has recovered its logs."""
    address = ("127.0.0.1", identity.nats_port)
    try:
        with socket.create_connection(address, timeout=_ANSWER_TIMEOUT_S) as connection:
            if connection.recv(4) != b"INFO":
                raise RefusedError("Something that is not NATS answers on its port.")
    except OSError as error:
        raise NotReadyError(f"nats: {error}") from error


def write_error(identity: Identity, stream: str, subject: str) -> str:
    """Why a stream takes no more messages; empty when it does.

    After its disk was full, it does so only when the server is started again. Asked by a
    purge of a ``subject`` that has no messages. Raises NotReadyError.
    """
    inbox = "_INBOX.supervisor"
    login = {"verbose": False, "user": NATS_USER, "pass": identity.nats_password}
    ask = msgspec.json.encode({"filter": subject}).decode()
    request = (
        f"CONNECT {msgspec.json.encode(login).decode()}\r\n"
        f"SUB {inbox} 1\r\n"
        f"PUB $JS.API.STREAM.PURGE.{stream} {inbox} {len(ask)}\r\n{ask}\r\n"
    )
    address = ("127.0.0.1", identity.nats_port)
    try:
        with socket.create_connection(address, timeout=_ANSWER_TIMEOUT_S) as connection:
            connection.sendall(request.encode())
            with connection.makefile("rb") as lines:
                for line in lines:
                    if line.startswith(b"MSG "):
                        answer = lines.read(int(line.split()[-1]))
                        return _purge_error(answer)
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise NotReadyError(f"nats: {error}") from error
    raise NotReadyError("nats: it has closed the connection")


def _purge_error(answer: bytes) -> str:
    error = msgspec.json.decode(answer).get("error", {})
    return str(error.get("description", "")) if error.get("err_code") == _PURGE_FAILED else ""

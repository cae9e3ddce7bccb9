"""A real nats-server for tests, on a free loopback port and in a folder of its own.

It is started like `support.etcd` starts its server: in a session of its own, and
killed by the kernel when pytest itself is killed.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbsched.local.binaries import find_nats_server
from support.etcd import dying_with_us, free_ports

START_WITHIN_S = 20.0
STOP_WITHIN_S = 5.0


class NatsServer:
    """One server. Data and port stay the same over a restart."""

    def __init__(self, folder: Path, *options: str, jetstream: bool = True) -> None:
        self.binary = find_nats_server()
        self._folder = folder
        self._options = options
        self._jetstream = jetstream
        (self.port,) = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server does not run"
        return self._process.pid

    def start(self) -> None:
        """Start the server and return when it greets clients."""
        assert self._process is None, "the server runs already"
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "nats.log").open("ab") as log:
            self._process = subprocess.Popen(
                dying_with_us(self._command()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait_until_it_greets()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End it in order. Does nothing when it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, as a crash would. Does nothing when it does not run."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Let it hold its connections and answer nothing, until `thaw` or `kill`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, sent: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(sent)
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _command(self) -> list[str]:
        jetstream = ["-js", "-sd", str(self._folder / "data")] if self._jetstream else []
        return [
            str(self.binary),
            *("-a", "127.0.0.1"),
            *("-p", str(self.port)),
            *jetstream,
            *self._options,
        ]

    def _wait_until_it_greets(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_WITHIN_S
        while not self._greets():
            log = (self._folder / "nats.log").read_text(errors="replace")[-2000:]
            if self._process.poll() is not None:
                raise RuntimeError(f"nats-server ended, {self._process.returncode}: {log}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"nats-server is not there after {START_WITHIN_S} s: {log}")
            time.sleep(0.01)

    def _greets(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return connection.recv(4) == b"INFO"
        except OSError:
            return False


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """The NATS that all tests share; keep to your `namespace`, and leave it running."""
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    try:
        yield server
    finally:
        server.stop()

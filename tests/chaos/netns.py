"""A network of its own for one daemon, which can be cut in one direction or in both.

Linux network namespaces and a pair of virtual interfaces. One direction is cut by telling
one side a wrong hardware address of the other: packets leave, and nobody takes them. No
connection is closed and no error comes back, as with a broken switch. The namespace lives
as long as the process that holds it, so nothing is left behind.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from support.conditions import until
from support.serverprocess import ServerProcess

_NOBODY = "02:00:00:00:00:01"


def missing() -> str:
    """Why namespaces cannot be made here; '' when they can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    for tool in ("ip", "unshare", "nsenter"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    tried = subprocess.run(["unshare", "--net", "ip", "link"], capture_output=True, text=True)
    if tried.returncode != 0:
        return f"network namespaces cannot be made here: {tried.stderr.strip()}"
    return ""


class _Holder(ServerProcess):
    """Keeps a namespace alive."""

    def _command(self) -> list[str]:
        return ["unshare", "--net", "sleep", "infinity"]

    def _wait_until_ready(self) -> None:
        own = os.readlink("/proc/self/ns/net")
        until(lambda: os.readlink(f"/proc/{self.pid}/ns/net") != own, what="a namespace")


class Network:
    """``host`` is this side's address, where servers listen; ``prefix`` goes before a command
    that is to run on the far side. From there one gets to this side's other addresses, too."""

    def __init__(self, folder: Path) -> None:
        self._holder = _Holder(folder.with_name(f"{folder.name}-network.log"))
        self._holder.start()
        self.prefix = ["nsenter", "--net", "--target", str(self._holder.pid)]
        number = secrets.randbelow(250 * 60)
        net = f"10.{198 + number % 2}.{number // 60}.{number % 60 * 4}".rsplit(".", 1)
        self.host, self.far = (f"{net[0]}.{int(net[1]) + n}" for n in (1, 2))
        self._near_link = f"nb{secrets.token_hex(4)}"
        self._far_link = f"{self._near_link}f"
        self._ip("link", "add", self._near_link, "type", "veth", "peer", self._far_link)
        self._ip("link", "set", self._far_link, "netns", str(self._holder.pid))
        self._ip("address", "add", f"{self.host}/30", "dev", self._near_link)
        self._ip("link", "set", self._near_link, "up")
        self._ip("address", "add", f"{self.far}/30", "dev", self._far_link, far=True)
        self._ip("link", "set", self._far_link, "up", far=True)
        self._ip("link", "set", "lo", "up", far=True)
        self._ip("route", "add", "default", "via", self.host, far=True)

    def cut(self, way: str) -> None:
        """``way``: ``from`` the far side, ``to`` it, or ``both``."""
        if way in ("from", "both"):
            self._misdirect(self.host, self._far_link, far=True)
        if way in ("to", "both"):
            self._misdirect(self.far, self._near_link, far=False)

    def _misdirect(self, address: str, link: str, *, far: bool) -> None:
        self._ip(
            *("neighbour", "replace", address, "lladdr", _NOBODY),
            *("dev", link, "nud", "permanent"),
            far=far,
        )

    def mend(self) -> None:
        for address, link, far in (
            (self.host, self._far_link, True),
            (self.far, self._near_link, False),
        ):
            self._ip("neighbour", "flush", "to", address, "dev", link, "nud", "all", far=far)

    def _ip(self, *arguments: str, far: bool = False) -> None:
        prefix = self.prefix if far else []
        subprocess.run([*prefix, "ip", *arguments], check=True, capture_output=True)

    def close(self) -> None:
        """The interfaces go with the namespace."""
        self._holder.kill()

"""Two hosts: network namespaces with a cable between them where we may, else this machine twice."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .forks import free_port

NAMES = ("alpha", "beta")


class Hosts:
    """Two hosts that see each other under `NAMES`; `reason` says why they are but one machine."""

    def __init__(self, folder: Path, reason: str) -> None:
        self.folder, self.reason = folder, reason
        self.spaces = [f"tr{os.getpid()}{name[0]}" for name in NAMES]
        self.names = "127.0.0.1" if reason else ",".join(NAMES)
        self.first = self.names.partition(",")[0]
        self.port = str(free_port())

    def on(self, host: int, command: list[str], home: Path | None = None) -> list[str]:
        """A command as it runs on a host, with `home` in place of the folder if that is given."""
        if self.reason:
            return command
        mounts = [f"mount --bind {self.folder}/hosts /etc/hosts"]
        mounts += [f"mount --bind {home} {self.folder} && cd {self.folder}"] * bool(home)
        script = f'hostname {NAMES[host]} && {" && ".join(mounts)} && exec "$@"'
        return [
            "ip", "netns", "exec", self.spaces[host], "unshare", "--uts", "--mount",
            "sh", "-c", script, "sh", *command,
        ]  # fmt: skip

    def cable(self, state: str) -> None:
        """Cuts the network of the second host (`down`) or mends it (`up`)."""
        _ip("-n", self.spaces[1], "link", "set", f"{self.spaces[1]}0", state)


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True, text=True)


@contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """Makes two hosts that share a folder."""
    hosts = Hosts(folder, _why_not())
    if hosts.reason:
        yield hosts
        return
    addresses = [f"10.77.{os.getpid() % 256}.{number}" for number in (1, 2)]
    lines = ["127.0.0.1 localhost", *map(" ".join, zip(addresses, NAMES, strict=True))]
    (folder / "hosts").write_text("".join(f"{line}\n" for line in lines))
    one, two = hosts.spaces
    try:
        for space in hosts.spaces:
            _ip("netns", "add", space)
        _ip("link", "add", f"{one}0", "netns", one, "type", "veth", "peer", f"{two}0", "netns", two)
        for space, address in zip(hosts.spaces, addresses, strict=True):
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", f"{space}0")
            for device in ("lo", f"{space}0"):
                _ip("-n", space, "link", "set", device, "up")
        yield hosts
    finally:
        for space in hosts.spaces:
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)


def _why_not() -> str:
    """Tries to make a network namespace and a host name in it."""
    if not (shutil.which("ip") and shutil.which("unshare")):
        return "no ip or unshare here"
    space = f"tr{os.getpid()}x"
    try:
        _ip("netns", "add", space)
        try:
            inside = ["ip", "netns", "exec", space, "unshare", "--uts", "--mount", "hostname", "x"]
            subprocess.run(inside, check=True, capture_output=True, text=True)
        finally:
            _ip("netns", "del", space)
    except (subprocess.CalledProcessError, OSError) as error:
        text = str(getattr(error, "stderr", "") or error).strip()
        return text.splitlines()[-1]
    return ""

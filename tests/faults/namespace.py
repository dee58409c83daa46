"""A second network on this machine, with one cable to it that can be made to swallow everything.

The cut is made in the neighbour tables: both ends address their frames to a card that does not exist, so packets
vanish as behind a router that lost its power, and neither kernel has anything to tell its programs. That needs root
and `ip`, no firewall.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Self

NOBODY = "02:00:00:00:00:01"


def unavailable() -> str:
    """Why there can be no second network here; empty when there can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "needs root and ip (iproute2) for network namespaces"
    return "" if Namespace.possible() else "needs a kernel that lets root make network namespaces"


class Namespace:
    """From `with` to its end; `ours` and `theirs` are the addresses of the two ends."""

    def __init__(self) -> None:
        number = os.getpid() % 62_500
        self.name = f"hermes-{os.getpid()}"
        self._ends = (f"hm{number}a", f"hm{number}b")
        net, host = number // 250, number % 62 * 4  # networks of four addresses
        self.ours, self.theirs = f"10.213.{net}.{host + 1}", f"10.213.{net}.{host + 2}"

    @staticmethod
    def possible() -> bool:
        """Whether one can be made."""
        name = f"hermes-probe-{os.getpid()}"
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
        if made:
            _ip("netns", "del", name)
        return made

    def __enter__(self) -> Self:
        here, there = self._ends
        _ip("netns", "add", self.name)
        try:
            _ip("link", "add", here, "type", "veth", "peer", "name", there)
            _ip("link", "set", there, "netns", self.name)
            _ip("addr", "add", f"{self.ours}/30", "dev", here)
            _ip("link", "set", here, "up")
            self._inside("addr", "add", f"{self.theirs}/30", "dev", there)
            self._inside("link", "set", there, "up")
            self._inside("link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["ip", "link", "del", self._ends[0]], capture_output=True, check=False)
        _ip("netns", "del", self.name)

    def command(self, words: Sequence[str]) -> list[str]:
        """The same command in there."""
        return ["ip", "netns", "exec", self.name, *words]

    def cut(self) -> None:
        """Everything vanishes, both ways, without a word."""
        _ip("neigh", "replace", self.theirs, "lladdr", NOBODY, "nud", "permanent", "dev", self._ends[0])
        self._inside("neigh", "replace", self.ours, "lladdr", NOBODY, "nud", "permanent", "dev", self._ends[1])

    def heal(self) -> None:
        """Packets arrive again."""
        _ip("neigh", "del", self.theirs, "dev", self._ends[0])
        self._inside("neigh", "del", self.ours, "dev", self._ends[1])

    def _inside(self, *words: str) -> None:
        _ip("-n", self.name, *words)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)

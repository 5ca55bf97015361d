# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One host: an overlay on a base root, booted by systemd-nspawn, with a network namespace and cgroups of its own.

All of this is to be called inside of the world (see ``world.py``), which takes away what is left here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ..cleanup import descendants, is_alive
from ..majors import run

LAB = Path("/run/cryobackup-hosts")
"""Where everything of the world lies, in memory; no other process of the machine sees it."""
IDENTITY = LAB / "id_ed25519"
KNOWN_HOSTS = LAB / "known_hosts"
BRIDGE = "hosts"
GATEWAY = "10.77.0.1"
CUT = "cut"
REBOOT = 133
"""What systemd-nspawn ends with when its host wants to be started again."""
ONLINE = 60.0
"""Seconds that a host may take to be reachable."""


class HostFailed(Exception):
    """A host did not do what it was told; the message says what, and what it wrote."""


@dataclass(frozen=True)
class Host:
    """A host of the laboratory, whether it runs or not."""

    name: str
    address: str
    base: Path
    cgroups: tuple[Path, ...]
    """The directories, one in each hierarchy, that its processes belong to."""

    @property
    def folder(self) -> Path:
        """What there is of it outside."""
        return LAB / "machines" / self.name

    @property
    def root(self) -> Path:
        """Its file system, as long as it runs."""
        return self.folder / "root"

    @property
    def disk(self) -> Path:
        """What it sees as /srv/disk: a disk that survives it."""
        return LAB / "disks" / self.name

    @property
    def namespace(self) -> str:
        """Name of its network namespace."""
        return f"host-{self.name}"

    def create(self) -> None:
        """Its identity, file system and network; it does not run yet."""
        upper = self.folder / "upper"
        for folder in (upper / "etc/ssh", upper / "root/.ssh", self.folder / "work", self.root):
            folder.mkdir(parents=True)
        self.disk.mkdir(parents=True, exist_ok=True)
        (upper / "root/.ssh").chmod(0o700)
        (upper / "root").chmod(0o700)
        (upper / "etc/hostname").write_text(f"{self.name}\n")
        # A machine that has an id is not booted for the first time, and makes no host keys by itself.
        (upper / "etc/machine-id").write_text(run("systemd-id128", "new"))
        (upper / "etc/hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        key = upper / "etc/ssh/ssh_host_ed25519_key"
        make_key(key)
        with open(KNOWN_HOSTS, "a") as known:
            known.write(f"{self.address} {' '.join(key.with_suffix('.pub').read_text().split()[:2])}\n")
        shutil.copy(IDENTITY.with_suffix(".pub"), upper / "root/.ssh/authorized_keys")
        self._connect()

    def _connect(self) -> None:
        outer = f"to-{self.name}"[:15]
        # A fixed hardware address: a host that is made anew is reachable at once.
        mac = "02:4d:" + ":".join(f"{int(part):02x}" for part in self.address.split("."))
        run("ip", "netns", "add", self.namespace)
        run("ip", "link", "add", outer, "type", "veth", "peer", "eth0", "address", mac, "netns", self.namespace)
        run("ip", "link", "set", outer, "master", BRIDGE, "up")
        for words in ("link set lo up", f"addr add {self.address}/24 dev eth0", "link set eth0 up"):
            run("ip", "-n", self.namespace, *words.split())
        run("ip", "-n", self.namespace, "route", "add", "default", "via", GATEWAY)

    def start(self) -> None:
        """Let it boot; see ``wait``."""
        layers = f"lowerdir={self.base},upperdir={self.folder}/upper,workdir={self.folder}/work"
        run("mount", "-t", "overlay", "-o", layers, "host", self.root)
        for cgroup in self.cgroups:
            cgroup.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "console.log", "ab") as console:
            subprocess.Popen(
                [sys.executable, "-m", __package__, "supervise", self.name, self.address, *map(str, self.cgroups)],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def supervise(self) -> int:
        """Run it, and run it again whenever it reboots."""
        # Without a cgroup of its own a host would share one with the others, and they would fight over it.
        for cgroup in self.cgroups:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))
        command = [
            *("systemd-nspawn", "--quiet", f"--directory={self.root}", f"--machine={self.name}", "--boot"),
            *("--register=no", "--keep-unit", f"--network-namespace-path=/run/netns/{self.namespace}"),
            *("--link-journal=no", "--resolv-conf=off", "--timezone=off", "--console=pipe"),
            *(f"--bind={self.disk}:/srv/disk", "--kill-signal=SIGRTMIN+4"),
        ]
        code = REBOOT
        while code == REBOOT:
            process = subprocess.Popen(command, env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"})
            (self.folder / "nspawn.pid").write_text(str(process.pid))
            code = process.wait()
        (self.folder / "nspawn.pid").unlink()
        return code

    @property
    def first(self) -> int | None:
        """Its first process, as seen from outside; None when it does not run."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return next(iter(descendants(int((self.folder / "nspawn.pid").read_text()))), None)
        return None

    def wait(self) -> None:
        """Return when it has booted and can be reached. Raises HostFailed."""
        deadline = time.monotonic() + ONLINE
        while not self._answers():
            if time.monotonic() > deadline:
                raise HostFailed(f"{self.name} did not come up:\n{self.console()[-3000:]}")
            time.sleep(0.05)
        self.inside("systemctl", "is-system-running", "--wait")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.address, 22), timeout=1):
            return True
        return False

    def inside(self, *command: str) -> str:
        """What a command prints that is run on it as root, without the network. Raises HostFailed."""
        result = subprocess.run(
            ["nsenter", f"--target={self.first}", "--all", "--", *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            words = " ".join(command)
            raise HostFailed(f"{self.name}: {words} ended with {result.returncode}: {result.stdout}{result.stderr}")
        return result.stdout

    def journal(self) -> str:
        """What all its services wrote."""
        try:
            return self.inside("journalctl", "--no-pager", "--output=short-precise")
        except (HostFailed, OSError) as error:
            return f"{error}\n"

    def console(self) -> str:
        """What it wrote to its console."""
        return (self.folder / "console.log").read_text(errors="replace")

    def kill(self) -> None:
        """What happens when somebody pulls the plug."""
        if self.first is not None:
            self._end(signal.SIGKILL)

    def power_off(self) -> None:
        """Let it shut down in an orderly way."""
        if self.first is not None:
            self._end(signal.SIGRTMIN + 4)

    def cut(self, address: str) -> None:
        """What it sends to an address is lost without a word, until ``mend``."""
        chain = "{ type filter hook output priority 0; }"
        self._nft(
            f"add table inet {CUT}; add chain inet {CUT} out {chain}; add rule inet {CUT} out ip daddr {address} drop"
        )

    def mend(self) -> None:
        """Everything arrives again."""
        self._nft(f"delete table inet {CUT}")

    def _nft(self, command: str) -> None:
        # Of the host's own root, but from outside: what runs on a host may not change its network.
        run("ip", "netns", "exec", self.namespace, "chroot", self.base, "nft", command)

    def _end(self, number: int) -> None:
        first = self.first
        if first is None:
            return
        # With the first process of its namespace, all others are gone.
        os.kill(first, number)
        deadline = time.monotonic() + ONLINE
        while is_alive(first) or (self.folder / "nspawn.pid").exists():
            if time.monotonic() > deadline:
                raise HostFailed(f"{self.name} does not end")
            time.sleep(0.02)
        run("umount", self.root)

    def remove(self) -> None:
        """Take it away altogether."""
        self.kill()
        run("ip", "netns", "delete", self.namespace)
        shutil.rmtree(self.folder)
        for cgroup in self.cgroups:
            remove_cgroup(cgroup)


def make_key(path: Path) -> None:
    """A new key pair for SSH, without a passphrase."""
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", path)


def remove_cgroup(cgroup: Path) -> None:
    """Remove a cgroup and those below it. Those with processes stay."""
    for folder, _directories, _files in os.walk(cgroup, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)

# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real object store: Ceph's RADOS Gateway, from Debian's packages, empty at each start.

One monitor, one storage daemon that keeps everything in memory, one gateway; no manager. The three run in an
enclosure on a root that is unpacked once, so the machine's own files are neither read nor written. Ready in one
to two seconds, about 250 MB, gone at once. What it proves: authentication, create-only writes and their races,
multipart uploads, versions, Object Lock in both modes, policies, lifecycles. What it does not: an unclean
restart (a storage daemon in memory forgets), and a checksum header that lies in SHA-256 (it ignores that one).

By hand, until Enter is pressed: ``.venv/bin/python -m tests.lab.ceph``.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from .account import ServerAccount
from .cleanup import remove_tree
from .enclosure import Enclosure, EnclosureFailed, wait_for_server
from .network import LOOPBACK, Authority, answers, free_ports
from .objects import ObjectStore, User, admin_request
from .roots import provide_root

SUITE = "sid"
PACKAGES = ("radosgw", "ceph-mon", "ceph-osd", "ceph-common")
KMS_KEY = "laboratory"
"""A key that the gateway's key service for tests knows: objects can be encrypted with SSE-KMS."""

# Without authentication between the daemons, and one placement group a pool, a start takes a second instead of
# twelve. Nothing of that is visible through S3.
CONFIGURATION = """
[global]
fsid = {cluster}
mon host = [v2:{address}:{monitor}]
public network = 127.0.0.0/8
ms mon client mode = crc
ms mon service mode = crc
ms mon cluster mode = crc
auth cluster required = none
auth service required = none
auth client required = none
log to file = false
log to stderr = false
mon cluster log to file = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 2000
mon data avail warn = 2
mon data avail crit = 1
[mon]
paxos propose interval = 0.02
paxos min wait = 0.01
[osd]
osd objectstore = memstore
memstore device bytes = 6G
osd class update on start = false
# Gateways tell each other what they change. One that starts after another was killed waits so long for that one's
# answer; the tick below keeps the living within it.
osd client watch timeout = 2
osd numa auto affinity = false
[client.rgw.lab]
rgw frontends = beast endpoint={gateway}:{http} ssl_endpoint={gateway}:{https} \
ssl_certificate=/etc/ceph/gateway.pem ssl_private_key=/etc/ceph/gateway.key tcp_nodelay=1
rgw dns name = localhost
rgw thread pool size = 64
rgw enable ops log = false
rgw enable usage log = false
rgw enable quota threads = false
rgw run sync thread = false
objecter tick interval = 0.5
# Lifecycles act when a test says so: Gateway.run_lifecycles.
rgw enable lc threads = false
# What is deleted gives its memory back at once, not after two hours.
rgw gc obj min wait = 1
rgw gc processor period = 5
rgw crypt require ssl = false
rgw crypt s3 kms backend = testing
rgw crypt s3 kms encryption keys = {kms_key}={kms_secret}
"""
GATEWAY_NAME = ("-n", "client.rgw.lab")
ATTEMPTS = 3
"""A port that was free may be taken by another session before the server has it."""


class Gateway(ObjectStore):
    """The object store that runs. Made by ``start_gateway``; close it.

    Attributes:
        url: The endpoint with TLS, by address.
        http_url: The same store without TLS.
        authority: Signs certificates of other servers that the same clients are to trust.
    """

    def __init__(self, folder: Path, account: ServerAccount | None = None, *, address: str = LOOPBACK) -> None:
        """``address``: where clients reach it."""
        super().__init__(folder, account)
        self.authority = Authority(folder / "tls", address)
        self.ca_file = self.authority.bundle
        self._enclosure = Enclosure(gateway_root(), folder / "enclosure")
        self._monitor, self._http, self._https = free_ports(3)
        self._address = address
        self.url = f"https://{address}:{self._https}"
        self.http_url = f"http://{address}:{self._http}"
        self._users = 0
        self._secrets: dict[str, str] = {}
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            self._start()
            self._admin = User("administrator", "laboratory", secrets.token_hex(20))
            words = ["user", "create", f"--uid={self._admin.name}", "--display-name=Administrator"]
            keys = [f"--access-key={self._admin.access_key}", f"--secret-key={self._admin.secret_key}"]
            self.admin(*words, *keys, "--caps=users=*;buckets=*;metadata=*;usage=*")
            self.owner = self.user("owner")
            stack.pop_all()

    def _start(self) -> None:
        inside = self._enclosure
        cluster, disk = str(uuid.uuid4()), str(uuid.uuid4())
        certificate, key = self.authority.issue("gateway")
        values = {
            "cluster": cluster,
            "address": LOOPBACK,
            "gateway": self._address,
            "monitor": self._monitor,
            "http": self._http,
            "https": self._https,
            "kms_key": KMS_KEY,
            "kms_secret": base64.b64encode(secrets.token_bytes(32)).decode(),
        }
        inside.write("/etc/ceph/ceph.conf", CONFIGURATION.format(**values))
        inside.write("/etc/ceph/gateway.pem", certificate.read_text())
        inside.write("/etc/ceph/gateway.key", key.read_text())
        for place in ("run/ceph", "var/lib/ceph/mon/ceph-a", "var/lib/ceph/osd/ceph-0", "var/lib/ceph/radosgw"):
            inside.path(place).mkdir(parents=True, exist_ok=True)
        address = f"[v2:{LOOPBACK}:{self._monitor}]"
        inside.run(["monmaptool", "--create", "--fsid", cluster, "--addv", "a", address, "/tmp/monmap"])
        inside.run(["ceph-mon", "--mkfs", "-i", "a", "--monmap", "/tmp/monmap"])
        inside.start("monitor", ["ceph-mon", "-i", "a", "-f"])
        inside.run(["ceph", "--connect-timeout=30", "osd", "new", disk])
        inside.run(["ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk])
        inside.start("storage", ["ceph-osd", "-i", "0", "-f"])
        # A gateway that comes before the storage waits five seconds before it asks again.
        status = ["ceph", "--connect-timeout=30", "osd", "stat"]
        wait_for_server(inside, "storage", lambda: "1 up" in inside.run(status))
        self.up()

    def up(self) -> None:
        """Start the gateway (again), at the same ports; what it stored is there."""
        self._enclosure.start("gateway", ["radosgw", *GATEWAY_NAME, "-f", "--log-to-stderr=true"])
        wait_for_server(
            self._enclosure, "gateway", lambda: all(answers(port, self._address) for port in (self._http, self._https))
        )

    def down(self) -> None:
        """Kill the gateway: requests break off, connections are refused. What it had acknowledged stays."""
        # Asked to stop, it takes ten seconds; there is nothing that it would have to write.
        self._enclosure.stop("gateway", how=signal.SIGKILL)

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """The store is down for as long as this context lasts."""
        self.down()
        try:
            yield
        finally:
            self.up()

    def admin(self, *arguments: str, timeout: float = 60.0) -> str:
        """Run ``radosgw-admin``; returns what it printed. Raises EnclosureFailed."""
        return self._enclosure.run(["radosgw-admin", *GATEWAY_NAME, *arguments], timeout=timeout)

    def run_lifecycles(self, *, day_seconds: int = 1) -> None:
        """Do what the buckets' lifecycles ask for, now; a day of a rule counts as ``day_seconds`` seconds."""
        self.admin("lc", "process", f"--rgw-lc-debug-interval={day_seconds}")

    def user(self, name: str | None = None) -> User:
        """A new user with keys. Without a policy it may use its own buckets only."""
        self._users += 1
        made = User(name or f"user{self._users}", f"key{secrets.token_hex(6)}", secrets.token_hex(20))
        query = {
            "uid": made.name,
            "display-name": made.name,
            "access-key": made.access_key,
            "secret-key": made.secret_key,
            "generate-key": "false",
        }
        admin_request(self.http_url, self._admin, self.region, "PUT", "/admin/user", query)
        self._secrets[made.access_key] = made.secret_key
        return made

    def secret_of(self, access_key: str) -> str:
        """The secret of a user that ``user`` made, for whoever has to sign a request anew."""
        return self._secrets[access_key]

    def suspend(self, user: User, *, suspended: bool = True) -> None:
        """Take a user's rights away, or give them back."""
        query = {"uid": user.name, "suspended": str(suspended).lower()}
        admin_request(self.http_url, self._admin, self.region, "POST", "/admin/user", query)

    def bucket_quota(self, user: User, *, bytes_at_most: int) -> None:
        """How much each of a user's buckets may hold from now on; -1: without end."""
        query = {
            "uid": user.name,
            "quota": "",
            "quota-type": "bucket",
            "max-size": str(bytes_at_most),
            "enabled": str(bytes_at_most >= 0).lower(),
        }
        admin_request(self.http_url, self._admin, self.region, "PUT", "/admin/user", query)

    def requests(self) -> int:
        """Requests that the gateway got since it was started, S3's and the administrator's."""
        [socket] = self._enclosure.path("run/ceph").glob("ceph-client.rgw.*.asok")
        counters = json.loads(
            self._enclosure.run(["ceph", "--admin-daemon", f"/run/ceph/{socket.name}", "perf", "dump", "rgw"])
        )
        return int(counters["rgw"]["req"])

    def log(self) -> str:
        """The end of what the gateway wrote."""
        return self._enclosure.log("gateway")

    def memory(self) -> int:
        """Bytes of memory that its daemons have resident, together."""
        names = ("monitor", "storage", "gateway")
        return sum(_resident(self._enclosure.pid(name)) for name in names)

    def close(self) -> None:
        """End it at once, and remove all its files. May be called twice."""
        super().close()
        self._enclosure.close()
        remove_tree(self.folder)


def _resident(pid: int) -> int:
    words = Path(f"/proc/{pid}/statm").read_text().split()
    return int(words[1]) * 4096


def gateway_root() -> Path:
    """The root it runs in; made at first use, from the internet. Raises RootUnavailable."""
    return provide_root("ceph", SUITE, PACKAGES)


def start_gateway(folder: Path, account: ServerAccount | None = None, *, address: str = LOOPBACK) -> Gateway:
    """An object store in a new directory ``folder``. Raises RootUnavailable or EnclosureFailed."""
    folder.mkdir(mode=0o755)
    for attempt in range(ATTEMPTS):
        place = folder / str(attempt)
        place.mkdir(mode=0o755)
        try:
            return Gateway(place, account, address=address)
        except EnclosureFailed:
            if attempt == ATTEMPTS - 1:
                raise
    raise EnclosureFailed("unreachable")


def main() -> int:
    """Run a gateway until Enter is pressed, for trying things by hand."""
    folder = Path(tempfile.mkdtemp(prefix="cblab-gateway-"))
    folder.chmod(0o755)
    try:
        gateway = start_gateway(folder / "ceph")
        try:
            bucket = gateway.make_bucket("locked")
            print(f"endpoint    {gateway.url} and {gateway.http_url}")
            print(f"ca          {gateway.ca_file}")
            print(f"credentials {gateway.credentials_file(gateway.owner)}")
            print(f"bucket      {bucket.name}")
            print("Enter ends it.", flush=True)
            sys.stdin.readline()
        finally:
            gateway.close()
    finally:
        remove_tree(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

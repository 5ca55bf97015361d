# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A weak object store: OpenStack Swift with its S3 layer, from Debian's packages, without TLS.

It answers ``If-None-Match: *`` as it should as long as writers come one after the other; of several at once more
than one may win. That is what a capability probe has to notice. Authentication is real, there is one user.
"""

from __future__ import annotations

from pathlib import Path

from .account import ServerAccount
from .cleanup import remove_tree
from .enclosure import Enclosure, wait_for_server
from .network import LOOPBACK, answers, free_ports
from .objects import ObjectStore, User
from .roots import provide_root

SUITE = "sid"
PACKAGES = ("swift-proxy", "swift-account", "swift-container", "swift-object", "memcached")
NODES = "/srv/node"
SERVICES = ("account", "container", "object")
WORKERS = 2

CLUSTER = """
[swift-hash]
swift_hash_path_suffix = laboratory
swift_hash_path_prefix = laboratory
[storage-policy:0]
name = only
default = yes
"""
SERVICE = """
[DEFAULT]
bind_ip = {address}
bind_port = {port}
workers = 1
user = root
devices = {nodes}
mount_check = false
fallocate_reserve = 0
log_address = /dev/null
log_level = ERROR
[pipeline:main]
pipeline = {service}-server
[app:{service}-server]
use = egg:swift#{service}
"""
FILTERS = "catch_errors gatekeeper cache listing_formats s3api tempauth copy slo versioned_writes symlink"
PROXY = """
[DEFAULT]
bind_ip = {address}
bind_port = {port}
workers = {workers}
user = root
log_address = /dev/null
log_level = ERROR
[pipeline:main]
pipeline = {filters} proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
[filter:tempauth]
use = egg:swift#tempauth
user_{user} = {secret} .admin .reseller_admin
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
check_bucket_owner = false
[filter:cache]
use = egg:swift#memcache
memcache_servers = {address}:{cache_port}
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_object_versioning = true
"""
# Swift's own program makes one ring at a time, in three steps of a third of a second each.
RINGS = """
import sys
from swift.common.ring import RingBuilder
address, *services = sys.argv[1:]
for service, port in (word.split(":") for word in services):
    builder = RingBuilder(4, 1, 0)
    device = {"id": 0, "region": 1, "zone": 1, "ip": address, "port": int(port), "device": "disk", "weight": 1}
    builder.add_dev(device)
    builder.rebalance()
    builder.get_ring().save(f"/etc/swift/{service}.ring.gz")
"""
PLAIN_FILTERS = ("catch_errors", "gatekeeper", "listing_formats", "copy", "slo", "symlink")


class WeakStore(ObjectStore):
    """Swift, running. Made empty; close it."""

    def __init__(self, folder: Path, account: ServerAccount | None = None) -> None:
        super().__init__(folder, account)
        folder.mkdir(mode=0o755)
        self.owner = User("owner", "laboratory:owner", "laboratory-secret")
        self._proxy_port, self._cache_port, *self._ports = free_ports(2 + len(SERVICES))
        self.url = f"http://{LOOPBACK}:{self._proxy_port}"
        root = provide_root("swift", SUITE, PACKAGES)
        self._enclosure = Enclosure(root, folder / "enclosure", megabytes=256, on_disk=NODES)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        inside = self._enclosure
        inside.write("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", mode=0o644)
        inside.write("/etc/group", "root:x:0:\n", mode=0o644)
        inside.write("/etc/hosts", f"{LOOPBACK} localhost\n", mode=0o644)
        inside.write("/etc/swift/swift.conf", CLUSTER)
        for place in (f"{NODES}/disk", "/var/cache/swift", "/run/swift", "/var/lock"):
            inside.path(place).mkdir(parents=True, exist_ok=True)
        inside.start("cache", ["memcached", "-u", "root", "-l", LOOPBACK, "-p", str(self._cache_port)])
        self._make_rings()
        for service, port in zip(SERVICES, self._ports, strict=True):
            values = {"address": LOOPBACK, "port": port, "service": service, "nodes": NODES}
            inside.write(f"/etc/swift/{service}-server.conf", SERVICE.format(**values))
            inside.start(service, [f"swift-{service}-server", f"/etc/swift/{service}-server.conf"])
        values = {
            "address": LOOPBACK,
            "port": self._proxy_port,
            "cache_port": self._cache_port,
            "workers": WORKERS,
            "filters": FILTERS,
            "user": self.owner.access_key.replace(":", "_"),
            "secret": self.owner.secret_key,
        }
        plain = "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in PLAIN_FILTERS)
        inside.write("/etc/swift/proxy-server.conf", PROXY.format(**values) + plain)
        inside.start("proxy", ["swift-proxy-server", "/etc/swift/proxy-server.conf"])
        for name, port in zip(
            (*SERVICES, "cache", "proxy"), (*self._ports, self._cache_port, self._proxy_port), strict=True
        ):
            wait_for_server(inside, name, lambda at=port: answers(at))

    def _make_rings(self) -> None:
        words = [f"{service}:{port}" for service, port in zip(SERVICES, self._ports, strict=True)]
        self._enclosure.run(["python3", "-c", RINGS, LOOPBACK, *words])

    def close(self) -> None:
        """End it at once, and remove all its files. May be called twice."""
        super().close()
        self._enclosure.close()
        remove_tree(self.folder)

# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A throw-away PostgreSQL for tests that compare formats with the real thing.

The server listens on a socket in its own directory only, runs as the system user ``postgres`` when the
tests run as root, dies with the tests, and is removed with them.
"""

from __future__ import annotations

import collections.abc
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2
import psycopg2.extensions
import pytest

SEGMENT_SIZE = 1 << 20
START_TIMEOUT = 60.0

SETTINGS = """
listen_addresses = ''
unix_socket_directories = '{root}'
fsync = off
shared_buffers = 16MB
wal_level = replica
autovacuum = off
archive_mode = on
archive_command = '{archive_command}'
log_timezone = 'UTC'
"""

# Whole or not at all, and content with finding what a crashed server had archived already.
ARCHIVE_COMMAND = (
    "cmp -s %p {root}/archive/%f"
    " || ( test ! -e {root}/archive/%f && cp %p {root}/%f.tmp && mv {root}/%f.tmp {root}/archive/%f )"
)


def bin_dir() -> Path:
    """The programs of the PostgreSQL in PG_BIN_DIR, or else of the newest that the distribution installed."""
    if os.environ.get("PG_BIN_DIR"):
        return Path(os.environ["PG_BIN_DIR"])
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    if not found:
        pytest.fail("no PostgreSQL server on this machine: install the package postgresql")
    return max(found, key=lambda path: int(path.parent.name))


def as_postgres(*command: str | Path, die_with_parent: bool = False) -> list[str]:
    """``command`` as the user that PostgreSQL may run as."""
    words = [str(word) for word in command]
    death = ["--pdeathsig", "QUIT"] if die_with_parent else []
    if os.geteuid() != 0:
        return ["setpriv", *death, *words] if death else words
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *death, *words]


def run(program: str, *arguments: str | Path, **environment: str) -> str:
    """Run one of PostgreSQL's programs; standard output and error are the result, failure is an error."""
    done = subprocess.run(
        as_postgres(bin_dir() / program, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="surrogateescape",
        check=False,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC", **environment},
        cwd="/tmp",
    )
    if done.returncode:
        raise AssertionError(f"{program} {arguments} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


@dataclass
class Cluster:
    """A data directory below ``root`` and, between ``start`` and ``stop``, the server on it."""

    root: Path
    data: Path = field(init=False)
    _process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.data = self.root / "data"

    @property
    def log(self) -> str:
        path = self.root / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def conninfo(self) -> str:
        return f"host={self.root} user=postgres dbname=postgres"

    def connect(self) -> psycopg2.extensions.connection:
        connection = psycopg2.connect(self.conninfo)
        connection.autocommit = True
        return connection

    def sql(self, *statements: str) -> list[tuple[t.Any, ...]]:
        """Run the statements in one session, each in a transaction of its own; the rows of the last."""
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def one(self, statement: str) -> t.Any:
        """The first column of the first row."""
        return self.sql(statement)[0][0]

    def launch(self, **settings: str) -> None:
        """Start the server without waiting for it."""
        options = [f"--{name}={value}" for name, value in settings.items()]
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                as_postgres(bin_dir() / "postgres", "-D", self.data, *options, die_with_parent=True),
                stdout=log,
                stderr=log,
                cwd="/tmp",
            )

    def start(self, **settings: str) -> None:
        """Start the server and wait until it answers."""
        self.launch(**settings)
        self.wait_until("SELECT true")

    def wait_until(self, condition: str) -> None:
        """Wait until the server answers ``condition`` with true."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self.exit_code() is not None:
                raise AssertionError(f"PostgreSQL ended:\n{self.log}")
            with contextlib.suppress(psycopg2.OperationalError):
                if self.one(condition):
                    return
            time.sleep(0.02)
        raise AssertionError(f"{condition} did not become true:\n{self.log}")

    def exit_code(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def wait(self) -> int:
        """Wait until the server has ended by itself; its exit code."""
        if self._process is None:
            raise AssertionError("there is no server to wait for")
        return self._process.wait(START_TIMEOUT)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server: SIGINT is a fast shutdown, SIGQUIT is a crash."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(how)
        self._process.wait(START_TIMEOUT)
        self._process = None

    @property
    def major(self) -> int:
        return int((self.data / "PG_VERSION").read_text())

    def backup_functions(self, *, wait_for_archive: bool = True) -> tuple[str, str]:
        """SQL that starts a backup with the label ``%s``, and SQL that stops it: LSN, backup_label, tablespace_map."""
        start, stop, mode = ("pg_backup_start", "pg_backup_stop", "")
        if self.major < 15:
            start, stop, mode = ("pg_start_backup", "pg_stop_backup", "exclusive => false, ")
        return (
            f"SELECT {start}(%s, {mode}fast => true)::text",
            f"SELECT lsn::text, labelfile, spcmapfile FROM {stop}({mode}wait_for_archive => {wait_for_archive})",
        )

    def promote(self) -> None:
        self.sql("SELECT pg_promote()")
        self.wait_until("SELECT NOT pg_is_in_recovery()")


def own(path: Path) -> None:
    """Give ``path`` to the user that PostgreSQL runs as."""
    if os.geteuid() == 0:
        entry = pwd.getpwnam("postgres")
        os.chown(path, entry.pw_uid, entry.pw_gid)


def new_root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="cryobackup-unit-", dir="/tmp"))
    own(root)
    (root / "archive").mkdir()
    own(root / "archive")
    return root


def settings(root: Path) -> str:
    """What is appended to postgresql.conf of a cluster below ``root``."""
    return SETTINGS.format(root=root, archive_command=ARCHIVE_COMMAND.format(root=root))


def init(root: Path, *options: str) -> Cluster:
    """Make a new cluster below ``root``."""
    cluster = Cluster(root)
    run("initdb", "-D", cluster.data, "-U", "postgres", "-A", "trust", "-N", "--locale=C", "-E", "UTF8", *options)
    with (cluster.data / "postgresql.conf").open("a") as configuration:
        configuration.write(settings(root))
    return cluster


def clone(cluster: Cluster, root: Path) -> Cluster:
    """A copy of a stopped cluster below ``root``, with everything that names the old place changed."""
    subprocess.run(["cp", "-a", str(cluster.data), str(root / "data")], check=True)
    for folder in ("archive",):
        subprocess.run(["cp", "-a", f"{cluster.root}/{folder}/.", str(root / folder)], check=True)
    copy = Cluster(root)
    with (copy.data / "postgresql.conf").open("a") as configuration:
        configuration.write(settings(root))
    (copy.data / "postmaster.pid").unlink(missing_ok=True)
    return copy


@pytest.fixture
def roots() -> collections.abc.Iterator[collections.abc.Callable[[], Path]]:
    """Makes directories for clusters, removed after the test."""
    made: list[Path] = []

    def make() -> Path:
        made.append(new_root())
        return made[-1]

    yield make
    for root in made:
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def template() -> collections.abc.Iterator[Cluster]:
    """A stopped, unused cluster with checksums and WAL segments of 1 MiB, to be cloned."""
    root = new_root()
    try:
        yield init(root, "--data-checksums", f"--wal-segsize={SEGMENT_SIZE >> 20}")
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def server(template: Cluster) -> collections.abc.Iterator[Cluster]:
    """A running cluster with some of everything in it. Tests may add, and must not stop it."""
    cluster = clone(template, new_root())
    try:
        cluster.start()
        cluster.sql(
            "CREATE EXTENSION pageinspect",
            "CREATE TABLE rows (id bigint PRIMARY KEY, body text)",
            "INSERT INTO rows SELECT i, repeat(md5(i::text), 8) FROM generate_series(1, 3000) AS i",
            "CREATE INDEX rows_gin ON rows USING gin (to_tsvector('simple', body))",
            "CREATE INDEX rows_hash ON rows USING hash (body)",
            "CREATE INDEX rows_brin ON rows USING brin (id)",
            "CREATE INDEX rows_spgist ON rows USING spgist (body)",
            "CREATE TABLE points (at point)",
            "INSERT INTO points SELECT point(i, i * 2) FROM generate_series(1, 500) AS i",
            "CREATE INDEX points_gist ON points USING gist (at)",
            "CREATE UNLOGGED TABLE scratch (id bigint PRIMARY KEY, body text)",
            "INSERT INTO scratch SELECT i, 'x' FROM generate_series(1, 500) AS i",
            "CREATE SEQUENCE numbers",
            "VACUUM",
            "CHECKPOINT",
        )
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(cluster.root)

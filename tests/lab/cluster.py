# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One PostgreSQL cluster of the laboratory: made, started, crashed, asked and changed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
from psycopg2 import sql as pgsql

from .account import ServerAccount
from .cleanup import descendants, kill_processes, lab_processes, remove_shared_memory
from .installation import Installation
from .template import Templates

if TYPE_CHECKING:
    from psycopg2.extensions import connection

SUPERUSER = "postgres"
PORT = 5432
Setting = str | int | float | bool | None

DEFAULT_SETTINGS: dict[str, Setting] = {
    "shared_buffers": "32MB",
    "max_connections": 40,
    "wal_level": "replica",
    "max_wal_size": "256MB",
    "track_commit_timestamp": True,
    "allow_in_place_tablespaces": True,
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
    "log_checkpoints": False,
}

PRIVATE_SETTINGS: dict[str, Setting] = {
    "listen_addresses": "",
    "port": PORT,
    "unix_socket_permissions": "0777",
    "logging_collector": False,
    "log_destination": "stderr",
    # Kept inside the data directory, shared memory cannot outlive it.
    "dynamic_shared_memory_type": "mmap",
}
"""Settings that keep a server inside the laboratory, for its command line, where nothing outranks them."""


class ServerFailed(AssertionError):
    """A server did not do what it was told; the message ends with the tail of its log."""


def setting_text(value: Setting) -> str:
    """A setting's value as PostgreSQL reads it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


class Cluster:
    """A data directory and, while it runs, the server on it.

    The server listens on a socket in ``socket_dir`` only and is this process's own child. Use
    ``Workspace.cluster`` or ``Workspace.adopt`` to make one: they end and remove it.
    """

    def __init__(
        self,
        data_dir: Path,
        socket_dir: Path,
        installation: Installation,
        account: ServerAccount,
        *,
        environment: Mapping[str, str],
        log_file: Path,
        overrides: Mapping[str, Setting] | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.socket_dir = socket_dir
        self.installation = installation
        self.account = account
        self.port = PORT
        self.log_file = log_file
        self.overrides: dict[str, Setting] = {**PRIVATE_SETTINGS, **(overrides or {})}
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"Cluster({self.installation}, {self.data_dir})"

    @property
    def major(self) -> int:
        """PostgreSQL major."""
        return self.installation.major

    @property
    def conninfo(self) -> str:
        """libpq connection string of the superuser to database ``postgres``."""
        return f"host={self.socket_dir} port={self.port} user={SUPERUSER} dbname=postgres"

    @property
    def environment(self) -> dict[str, str]:
        """Environment for programs that shall find this cluster by themselves."""
        return {
            **self._environment,
            "PGHOST": str(self.socket_dir),
            "PGPORT": str(self.port),
            "PGUSER": SUPERUSER,
            "PGDATABASE": "postgres",
        }

    # Life

    def create(
        self,
        templates: Templates,
        *,
        checksums: bool = True,
        wal_segment_mb: int | None = None,
        settings: Mapping[str, Setting] | None = None,
    ) -> None:
        """Make a new cluster in ``data_dir``, an empty directory, and write the settings."""
        options = ["-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        if checksums:
            options.append("--data-checksums")
        elif self.major >= 18:
            options.append("--no-data-checksums")
        if wal_segment_mb is not None:
            options.append(f"--wal-segsize={wal_segment_mb}")
        command = (self.installation.program("initdb"), *options)

        def initdb(folder: Path) -> None:
            self._as_server([*command, "-D", str(folder)])

        templates.instantiate(command, initdb, self.data_dir)
        known = {name: value for name, value in DEFAULT_SETTINGS.items() if self._knows(name)}
        self._write_settings({**known, **(settings or {})})

    def _knows(self, name: str) -> bool:
        # 13 and 14 got this developer option in minor versions too, but not in their first ones.
        return name != "allow_in_place_tablespaces" or self.major >= 15

    def _write_settings(self, settings: Mapping[str, Setting]) -> None:
        path = self.data_dir / "postgresql.conf"
        text = path.read_text()
        for name, value in settings.items():
            text = re.sub(rf"(?m)^{re.escape(name)} = .*\n", "", text)
            if value is not None:
                quoted = setting_text(value).replace("'", "''")
                text += f"{name} = '{quoted}'\n"
        path.write_text(text)

    def configure(self, reload: bool = True, **settings: Setting) -> None:
        """Change settings in ``postgresql.conf`` (None takes one out), and reload them when running."""
        self._write_settings(settings)
        if reload and self.running:
            self.reload()

    def enable_archiving(self, command: str, **settings: Setting) -> None:
        """Turn archiving on with ``command`` as ``archive_command``; restarts a running server."""
        self.configure(False, archive_mode=True, archive_command=command, **settings)
        if self.running:
            self.restart()

    @property
    def running(self) -> bool:
        """Whether the server that this object started is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        if self._process is None:
            raise ServerFailed(f"{self} was never started")
        return self._process.pid

    def start(self, timeout: float = 60.0, *, wait: bool = True) -> None:
        """Start the server; returns when it accepts connections. Raises ServerFailed with its log.

        With ``wait=False`` returns at once (see ``wait_ready``).
        """
        if self.running:
            raise ServerFailed(f"{self} runs already")
        command = [self.installation.program("postgres"), "-D", str(self.data_dir)]
        settings = {**self.overrides, "unix_socket_directories": str(self.socket_dir)}
        for name, value in settings.items():
            command += ["-c", f"{name}={setting_text(value)}"]
        with open(self.log_file, "ab") as log:
            self._process = subprocess.Popen(
                self.account.argv(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=self._environment,
                start_new_session=True,
            )
        if wait:
            self.wait_ready(timeout)

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Wait until a started server accepts connections. Raises ServerFailed with its log."""
        deadline = time.monotonic() + timeout
        while self._status() not in ("ready", "standby"):
            if not self.running:
                raise ServerFailed(f"{self} did not start:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise ServerFailed(f"{self} accepts no connections after {timeout} s:\n{self.log_tail()}")
            time.sleep(0.01)

    def _status(self) -> str:
        # The eighth line of postmaster.pid tells what pg_ctl waits for: src/include/utils/pidfile.h.
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
        except OSError:
            return ""
        current = len(lines) >= 8 and lines[0].strip() == str(self.pid)
        return lines[7].strip() if current else ""

    def stop(self, mode: str = "fast", timeout: float = 60.0) -> None:
        """Stop the server: ``smart``, ``fast`` or ``immediate``; nothing happens when it does not run."""
        number = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode]
        if self._process is None or not self.running:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerFailed(f"{self} did not stop within {timeout} s:\n{self.log_tail()}") from None

    def kill(self) -> None:
        """Crash the server: SIGKILL to the postmaster and everything it started, all gone on return."""
        if self._process is None:
            return
        kill_processes([self.pid, *descendants(self.pid)] if self.running else [])
        self._process.wait()
        # What was started in the meantime sits in the data directory, as everything that a server starts.
        kill_processes(process.pid for process in lab_processes(self.data_dir))

    def restart(self, mode: str = "fast") -> None:
        """Stop and start the server."""
        self.stop(mode)
        self.start()

    def reload(self) -> None:
        """Make the server read its configuration again; returns when a new session sees it."""
        before = self.value("SELECT pg_conf_load_time()")
        self.execute("SELECT pg_reload_conf()")
        deadline = time.monotonic() + 30
        while self.value("SELECT pg_conf_load_time()") == before and time.monotonic() < deadline:
            time.sleep(0.01)

    def close(self) -> None:
        """End the server without ceremony, and the shared memory that it may leave."""
        self.kill()
        remove_shared_memory(self.data_dir)

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the server's log."""
        try:
            text = self.log_file.read_text(errors="replace")
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(text.splitlines()[-lines:])

    # Questions and statements

    def connect(self, dbname: str = "postgres", *, autocommit: bool = True) -> connection:
        """A new superuser session."""
        session = psycopg2.connect(f"{self.conninfo} dbname={dbname}")
        session.autocommit = autocommit
        return session

    @contextlib.contextmanager
    def session(self, dbname: str = "postgres") -> Iterator[connection]:
        """A superuser session in autocommit mode that is closed at the end."""
        session = self.connect(dbname)
        try:
            yield session
        finally:
            session.close()

    def query(self, statement: str, *values: Any, dbname: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement in a session of its own and return its rows (none when it has no result)."""
        with self.session(dbname) as session, session.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def execute(self, statement: str, *values: Any, dbname: str = "postgres") -> None:
        """Run one or more statements in a session of their own."""
        self.query(statement, *values, dbname=dbname)

    def value(self, statement: str, *values: Any, dbname: str = "postgres") -> Any:
        """The first column of the first row."""
        return self.query(statement, *values, dbname=dbname)[0][0]

    def psql(self, script: str, dbname: str = "postgres") -> str:
        """Run a psql script (every meta command allowed) and return what it prints, unaligned."""
        options = ["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", dbname, "-f", "-"]
        return self.run("psql", *options, stdin=script).stdout

    def run(
        self,
        program: str,
        *options: str | Path,
        stdin: str | None = None,
        check: bool = True,
        timeout: float | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the cluster's major, as the server's user, with the cluster as its default."""
        command = [self.installation.program(program), *map(str, options)]
        return self._as_server(command, stdin=stdin, check=check, timeout=timeout)

    def _as_server(
        self,
        command: list[str],
        *,
        stdin: str | None = None,
        check: bool = True,
        timeout: float | None = None,
    ) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            self.account.argv(command),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            cwd="/",
            env=self.environment,
            timeout=timeout,
            check=False,
        )
        if check and result.returncode != 0:
            name = os.path.basename(command[0])
            raise ServerFailed(f"{name} exited {result.returncode}:\n{result.stdout}{result.stderr}")
        return result

    # Facts

    def control(self) -> dict[str, str]:
        """What pg_controldata prints, name to value."""
        lines = self.run("pg_controldata", "-D", self.data_dir).stdout.splitlines()
        return {name.strip(): value.strip() for name, _unused, value in (line.partition(":") for line in lines)}

    @property
    def system_identifier(self) -> str:
        """System identifier, in decimal."""
        return self.control()["Database system identifier"]

    @property
    def checksums(self) -> bool:
        """Whether data checksums are on."""
        return self.control()["Data page checksum version"] != "0"

    def lsn(self) -> str:
        """Position up to which WAL is written."""
        return str(self.value("SELECT pg_current_wal_lsn()"))

    def databases(self) -> list[str]:
        """Names of the databases that accept connections, and whose removal was not interrupted."""
        rows = self.query("SELECT datname FROM pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY datname")
        return [str(row[0]) for row in rows]

    def relation_path(self, relation: str, dbname: str = "postgres") -> Path:
        """First file of the main fork of a relation."""
        return self.data_dir / str(self.value("SELECT pg_relation_filepath(%s)", relation, dbname=dbname))

    # Changes

    def checkpoint(self) -> None:
        """Write all dirty pages to their files."""
        self.execute("CHECKPOINT")

    def switch_wal(self) -> str:
        """Finish the current WAL segment, whether anything was written or not; returns its file name."""
        with self.session() as session, session.cursor() as cursor:
            # A switch directly after a switch does nothing: make sure there is a record to finish.
            cursor.execute("SELECT pg_create_restore_point('switch')")
            cursor.execute("SELECT pg_walfile_name(pg_switch_wal())")
            row = cursor.fetchone()
        if row is None:
            raise ServerFailed("pg_switch_wal returned nothing")
        return str(row[0])

    def wait_archived(self, segment: str, timeout: float = 60.0) -> None:
        """Wait until the server has seen ``archive_command`` succeed for ``segment``."""
        wal = self.data_dir / "pg_wal"
        status = wal / "archive_status"
        deadline = time.monotonic() + timeout
        while not (status / f"{segment}.done").exists():
            # A segment whose status file is gone has been archived and recycled.
            if not (status / f"{segment}.ready").exists() and not (wal / segment).exists():
                return
            if time.monotonic() > deadline:
                raise ServerFailed(f"{segment} is not archived after {timeout} s:\n{self.log_tail()}")
            time.sleep(0.02)

    def create_database(self, name: str, *, tablespace: str | None = None) -> None:
        """Create a database, in ``tablespace`` when one is named."""
        statement = pgsql.SQL("CREATE DATABASE {}").format(pgsql.Identifier(name))
        if tablespace is not None:
            statement += pgsql.SQL(" TABLESPACE {}").format(pgsql.Identifier(tablespace))
        self._statement(statement)

    def drop_database(self, name: str) -> None:
        """Drop a database, ending its sessions."""
        self._statement(pgsql.SQL("DROP DATABASE {} WITH (FORCE)").format(pgsql.Identifier(name)))

    def create_tablespace(self, name: str) -> Path:
        """Create a tablespace in a new directory beside the data directory; returns that directory."""
        path = self.data_dir.parent / f"{self.data_dir.name}-tablespace-{name}"
        path.mkdir(mode=0o700)
        self.account.own(path)
        statement = pgsql.SQL("CREATE TABLESPACE {} LOCATION {}")
        self._statement(statement.format(pgsql.Identifier(name), pgsql.Literal(str(path))))
        return path

    def drop_tablespace(self, name: str) -> None:
        """Drop an empty tablespace and remove its directory."""
        where = "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = %s"
        location = self.value(where, name)
        self._statement(pgsql.SQL("DROP TABLESPACE {}").format(pgsql.Identifier(name)))
        if location:
            Path(location).rmdir()

    def _statement(self, statement: pgsql.Composable) -> None:
        with self.session() as session, session.cursor() as cursor:
            cursor.execute(statement)

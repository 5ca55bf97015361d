# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection of an SFTP location: one event loop in a thread of its own, and one SSH session in it.

The engine's threads hand in coroutines and wait for them. A broken connection is made anew, and what was asked
for is asked again: everything that runs here can be run twice.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import logging
import random
import threading
import time
import typing as t
import weakref

from ...errors import LocationError
from ..secret_file import read_secret
from . import errors

if t.TYPE_CHECKING:
    import asyncssh

    from ...config.locations import SftpOptions

T = t.TypeVar("T")
Operation: t.TypeAlias = t.Callable[["Session"], t.Coroutine[t.Any, t.Any, T]]

_FIRST_DELAYS: t.Final = (0.2, 0.8)
"""Seconds between attempts at the first connection: who waits for an answer is told soon that there is none."""
_LATER_DELAYS: t.Final = (0.2, 1.0, 3.0, 6.0, 10.0)
"""The same for a connection that broke: a server that is restarted must not cost a long backup."""
_BREAKS: t.Final = 4
"""How often in a row one operation may lose its connection before it is given up."""
_MEMORY_SECONDS: t.Final = 2.0
"""So long after an attempt that failed the others who waited for it get its error, instead of one each for himself."""
_ENCRYPTION: t.Final = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes128-ctr",
    "aes256-ctr",
)
"""What is fast first: OpenSSL does AES-GCM in one pass. Everything we send is encrypted already."""
BLOCK: t.Final = 261120
"""Bytes in a request at most: what OpenSSH takes (limits@openssh.com), where others take 32 KiB."""


@dataclasses.dataclass(eq=False)
class Session:
    """One SFTP session. What it opened dies with it."""

    connection: asyncssh.SSHClientConnection
    sftp: asyncssh.SFTPClient
    number: int
    heard: float
    """When it answered last, by the monotonic clock. Whoever waits for several answers sets it at each of them."""

    def answered(self) -> None:
        self.heard = time.monotonic()


class Channel:
    """Runs operations on the location's session. Thread-safe. Nothing happens before the first one."""

    def __init__(self, location: str, options: SftpOptions) -> None:
        self._worker = _Worker(location, options)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(self, operation: Operation[T]) -> concurrent.futures.Future[T]:
        """Begin an operation. It is repeated when the connection breaks; its errors are asyncssh's or LocationError."""
        with self._lock:
            if self._thread is None:
                self._thread = _start(self, self._worker)
        return asyncio.run_coroutine_threadsafe(self._worker.run(operation), self._worker.loop)

    def run(self, operation: Operation[T]) -> T:
        """Do an operation."""
        return self._result(self.submit(operation))

    def run_if_connected(self, operation: Operation[T]) -> T | None:
        """Do an operation once if there is a connection; None if there is none, or if it breaks meanwhile."""
        with self._lock:
            if self._thread is None:
                return None
        return self._result(
            asyncio.run_coroutine_threadsafe(self._worker.run_if_connected(operation), self._worker.loop)
        )

    @staticmethod
    def _result(future: concurrent.futures.Future[T]) -> T:
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


def _start(owner: Channel, worker: _Worker) -> threading.Thread:
    thread = worker.start()
    # Neither the thread nor what runs in it knows its owner: when nobody uses the location any more, or the
    # program ends, the connection is closed as it should be.
    weakref.finalize(owner, worker.stop, thread)
    return thread


class _Worker:
    def __init__(self, location: str, options: SftpOptions) -> None:
        self._location = location
        self._options = options
        self._session: Session | None = None
        self._sessions = 0
        self._connecting = asyncio.Lock()
        self._failure: tuple[float, LocationError] | None = None

    def start(self) -> threading.Thread:
        self.loop = asyncio.new_event_loop()
        # It warns of every packet that a broken connection does not take any more.
        logging.getLogger("asyncio").setLevel(logging.ERROR)
        thread = threading.Thread(target=self._loop_forever, name="sftp", daemon=True)
        thread.start()
        return thread

    def _loop_forever(self) -> None:
        # What other requests say about a connection that broke was said already to whoever waited for one.
        self.loop.set_exception_handler(lambda _loop, _context: None)
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.run_until_complete(self._leave())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()

    async def _leave(self) -> None:
        import asyncssh

        session, self._session = self._session, None
        if session is not None:
            session.connection.close()
            with contextlib.suppress(TimeoutError, OSError, asyncssh.Error):
                async with asyncio.timeout(2):
                    await session.connection.wait_closed()
            session.connection.abort()
        others = asyncio.all_tasks() - {t.cast("asyncio.Task[t.Any]", asyncio.current_task())}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def stop(self, thread: threading.Thread) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        if thread is not threading.current_thread():
            thread.join(5)

    async def run(self, operation: Operation[T]) -> T:
        for attempt in range(1, _BREAKS + 1):
            session = await self._connected()
            try:
                return await self._watched(session, operation)
            except errors.broken():
                self._drop(session)
                if attempt == _BREAKS:
                    raise
            await asyncio.sleep(_some(0.1 * attempt))
        raise AssertionError  # the loop ends above

    async def run_if_connected(self, operation: Operation[T]) -> T | None:
        session = self._session
        if session is None or session.connection.is_closed():
            return None
        try:
            return await self._watched(session, operation)
        except errors.broken():
            self._drop(session)
            return None

    async def _watched(self, session: Session, operation: Operation[T]) -> T:
        """Raises TimeoutError when the session has not answered anything for too long."""
        session.answered()
        task = asyncio.ensure_future(operation(session))
        try:
            while True:
                patience = session.heard + self._options.timeout - time.monotonic()
                if patience <= 0:
                    raise TimeoutError
                done, _unused = await asyncio.wait({task}, timeout=patience)
                if done:
                    session.answered()
                    return task.result()
        finally:
            task.cancel()

    def _drop(self, session: Session) -> None:
        if self._session is session:
            self._session = None
        session.connection.abort()

    async def _connected(self) -> Session:
        async with self._connecting:
            if self._session is not None and not self._session.connection.is_closed():
                return self._session
            if self._failure is not None and time.monotonic() - self._failure[0] < _MEMORY_SECONDS:
                raise self._failure[1]
            try:
                self._session = await self._connect()
            except LocationError as error:
                self._failure = time.monotonic(), error
                raise
            self._failure = None
            return self._session

    async def _connect(self) -> Session:
        import asyncssh

        failures: tuple[type[Exception], ...] = (*errors.broken(), asyncssh.SFTPError)
        delays = _LATER_DELAYS if self._sessions else _FIRST_DELAYS
        for delay in (*delays, None):
            try:
                return await self._open()
            except failures as error:
                if delay is None or isinstance(error, errors.hopeless()):
                    raise errors.cannot_connect(self._location, self._options, error) from error
            await asyncio.sleep(_some(delay))
        raise AssertionError  # the loop ends above

    async def _open(self) -> Session:
        import asyncssh

        options = self._options
        connection = await asyncssh.connect(
            options.host,
            options.port,
            username=options.user,
            client_keys=[self._key()],
            known_hosts=self._known_hosts(),
            # Nothing of the user's: no ~/.ssh/config, no certificates, no agent, no passwords. The home directory may
            # be somebody else's.
            config=None,
            x509_trusted_certs=None,
            x509_trusted_cert_paths=[],
            agent_path=None,
            preferred_auth="publickey",
            gss_host=None,
            encryption_algs=_ENCRYPTION,
            compression_algs=None,
            connect_timeout=min(options.timeout, 30.0),
            login_timeout=min(options.timeout, 30.0),
            keepalive_interval=max(1.0, options.timeout / 4),
            keepalive_count_max=3,
        )
        try:
            async with asyncio.timeout(options.timeout):
                sftp = await connection.start_sftp_client()
        except BaseException:
            connection.abort()
            raise
        self._sessions += 1
        return Session(connection, sftp, self._sessions, time.monotonic())

    def _key(self) -> asyncssh.SSHKey:
        import asyncssh

        path = self._options.key_file
        try:
            return asyncssh.import_private_key(read_secret(self._location, path))
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            raise LocationError(
                f"location {self._location!r}: {path} holds no private key that can be used: {error}",
                hint="It has to be a key of its own without a passphrase: ssh-keygen -t ed25519 -N '' -f FILE",
                id="secret-file",
            ) from error

    def _known_hosts(self) -> asyncssh.SSHKnownHosts:
        import asyncssh

        path = self._options.known_hosts
        try:
            return asyncssh.import_known_hosts(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            options = self._options
            raise LocationError(
                f"location {self._location!r}: cannot use {path}: {errors.reason(error)}",
                hint="It has to hold the server's key, compared with the one on its console: "
                f"ssh-keyscan -p {options.port} {options.host}",
                id="location-host-key",
            ) from error


def _some(seconds: float) -> float:
    """About as long: those who lost a connection together must not all come back together."""
    return seconds * random.SystemRandom().uniform(0.75, 1.25)


_closing: set[asyncio.Task[None]] = set()


def later(closing: t.Coroutine[t.Any, t.Any, None]) -> None:
    """Nobody waits for the answer to a close."""
    task = asyncio.ensure_future(_quietly(closing))
    _closing.add(task)
    task.add_done_callback(_closing.discard)


async def _quietly(closing: t.Coroutine[t.Any, t.Any, None]) -> None:
    import asyncssh

    with contextlib.suppress(asyncssh.Error, OSError):
        await closing

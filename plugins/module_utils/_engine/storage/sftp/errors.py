# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what SSH, SFTP and the network say to our errors."""

from __future__ import annotations

import asyncio
import socket
import typing as t

from ...errors import LocationError, LocationFull

if t.TYPE_CHECKING:
    import asyncssh

    from ...config.locations import SftpOptions

UNTOUCHED: t.Final = "Earlier backups are untouched."
_READ_ONLY: t.Final = 1  # f_flag of statvfs@openssh.com: SSH2_FXE_STATVFS_ST_RDONLY, OpenSSH's PROTOCOL file
_LITTLE_SPACE: t.Final = 4 << 20
"""Bytes: a server that has less and says "failure" most likely means that."""


def broken() -> tuple[type[Exception], ...]:
    """What a request ends with when the connection is gone, and not for its own fault. TimeoutError is an OSError."""
    import asyncssh

    return (
        asyncssh.DisconnectError,
        asyncssh.ChannelOpenError,
        asyncssh.SFTPNoConnection,
        asyncssh.SFTPConnectionLost,
        OSError,
        asyncio.IncompleteReadError,
    )


def hopeless() -> tuple[type[Exception], ...]:
    """Reasons not to connect that no second attempt changes."""
    import asyncssh

    return (
        asyncssh.HostKeyNotVerifiable,
        asyncssh.PermissionDenied,
        asyncssh.KeyExchangeFailed,
        asyncssh.ProtocolNotSupported,
        asyncssh.ServiceNotAvailable,
        asyncssh.IllegalUserName,
    )


def cannot_connect(location: str, options: SftpOptions, error: Exception) -> LocationError:
    """Why there is no connection. Keys and their passphrases are in none of the texts."""
    import asyncssh

    where = f"{options.user}@{options.host}:{options.port}"
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return LocationError(
            f"location {location!r}: the key of {options.host}:{options.port} is not one of those in "
            f"{options.known_hosts} ({error.reason})",
            hint="Nothing was sent. Has the server been installed anew, or is somebody in between? Compare the key "
            f"with the one on the server's console, then enter it: ssh-keyscan -p {options.port} {options.host}",
            id="location-host-key",
        )
    if isinstance(error, asyncssh.PermissionDenied | asyncssh.IllegalUserName):
        return LocationError(
            f"location {location!r}: {where} refuses the key {options.key_file}",
            hint="Its public half belongs into the authorized_keys of that user; the server's log says more. "
            f"{UNTOUCHED}",
            id="location-denied",
        )
    if isinstance(error, asyncssh.ChannelOpenError | asyncssh.SFTPError):
        return LocationError(
            f"location {location!r}: {where} does not offer SFTP ({error.reason})",
            hint=f"The server needs the subsystem sftp, best internal-sftp. {UNTOUCHED}",
            id="location-down",
        )
    return LocationError(
        f"location {location!r}: no connection to {where}: {reason(error)}",
        hint=f"Is the server up, is the port open, is the network there? {UNTOUCHED}",
        id="location-down",
    )


def reason(error: BaseException) -> str:
    """In words, also where the exception itself has none."""
    import asyncssh

    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return f"the name is not known: {error.strerror}"
    if isinstance(error, asyncssh.Error):
        return error.reason or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def connection_lost(location: str, doing: str, error: Exception) -> LocationError:
    return LocationError(
        f"location {location!r}: the connection broke while we tried to {doing}: {reason(error)}",
        hint=f"{UNTOUCHED} Run it again when the server and the network are well.",
        id="location-down",
    )


async def refused(
    location: str, doing: str, error: asyncssh.SFTPError, sftp: asyncssh.SFTPClient, path: str
) -> LocationError:
    """Why the server refused a request. Version 3 of SFTP, which all speak, has no word for a full disk: look."""
    import asyncssh

    what = f"location {location!r}: cannot {doing}: "
    if isinstance(error, asyncssh.SFTPPermissionDenied | asyncssh.SFTPWriteProtect):
        return LocationError(
            f"{what}permission denied",
            hint="Give the directory to the user that logs in, or allow this request in the server's set-up. "
            f"{UNTOUCHED}",
            id="location-denied",
        )
    if isinstance(error, asyncssh.SFTPNoSpaceOnFilesystem | asyncssh.SFTPQuotaExceeded):
        return _full(f"{what}{error.reason}")
    if isinstance(error, asyncssh.SFTPOpUnsupported):
        return LocationError(
            f"{what}the server does not support it ({error.reason})",
            hint="docs/sftp.md says what a server must offer. Nothing was written under a name.",
            id="location-unfit",
        )
    if isinstance(error, asyncssh.SFTPFailure):
        try:
            status = await sftp.statvfs(path)
        except (asyncssh.Error, OSError):
            status = None
        if status is not None and status.flags & _READ_ONLY:
            return LocationError(f"{what}the file system there is read-only", hint=f"Mend it. {UNTOUCHED}")
        if status is not None and (
            status.bavail * status.frsize < _LITTLE_SPACE or (status.files and not status.favail)
        ):
            return _full(f"{what}no space left")
        return LocationError(
            f"{what}the server says only {error.reason!r}",
            hint=f"It may be a quota, or a failing disk: the server's log says more. {UNTOUCHED}",
        )
    return LocationError(f"{what}{reason(error)}", hint=f"Mend the location, then run again. {UNTOUCHED}")


def _is_full(status: asyncssh.SFTPVFSAttrs) -> bool:
    """No space, or no inodes where their number is limited at all."""
    return status.bavail * status.frsize < _LITTLE_SPACE or (status.files > 0 and status.favail == 0)


def _full(what: str) -> LocationFull:
    return LocationFull(what, hint=f"{UNTOUCHED} Free space there or let `cryobackup prune` do it, then run again.")

# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a recovery is to end, and how PostgreSQL is told. Pure.

PostgreSQL 12 and newer read recovery settings like any others and recover from an archive when
``recovery.signal`` exists. They are written to ``postgresql.auto.conf``, which is read last and always
lies in the data directory, whereas ``postgresql.conf`` may lie elsewhere (Debian).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
import typing as t

from ..errors import ConfigError
from .lsn import format_lsn, parse_lsn

RECOVERY_SIGNAL: t.Final = "recovery.signal"
AUTO_CONF: t.Final = "postgresql.auto.conf"
ACTIONS: t.Final = ("promote", "pause", "shutdown")
LATEST, IMMEDIATE, TIME, LSN, NAME, XID = "latest", "immediate", "time", "lsn", "name", "xid"
LATEST_TIMELINE, CURRENT_TIMELINE = "latest", "current"

_NAME_BYTES_MAX: t.Final = 63  # MAXFNAMELEN - 1, xlog_internal.h
_FIRST_XID: t.Final = 3  # FirstNormalTransactionId, transam.h
_BEGIN: t.Final = "# BEGIN recovery settings by cryobackup"
_END: t.Final = "# END recovery settings by cryobackup"
_DISABLED: t.Final = "# disabled by cryobackup restore: "
_BLOCK = re.compile(rf"^{_BEGIN}[^\n]*\n(?:(?!{_BEGIN})[^\n]*\n)*?{_END}[^\n]*\n?", re.MULTILINE)
_PARAMETER = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.$]*)")


class RecoveryTargetError(ConfigError):
    """The wish itself makes no sense; whether it can be fulfilled is another question (TargetError)."""

    id = "recovery-target"


@dataclasses.dataclass(frozen=True, slots=True)
class RecoveryTarget:
    """Where recovery ends. Made by one of the functions below, which check ``value``."""

    kind: str
    value: str = ""
    """As PostgreSQL reads it."""

    @classmethod
    def latest(cls) -> RecoveryTarget:
        """The end of the archived WAL."""
        return cls(LATEST)

    @classmethod
    def immediate(cls) -> RecoveryTarget:
        """The end of the backup, the first state that is consistent."""
        return cls(IMMEDIATE)

    @classmethod
    def at_time(cls, when: str | dt.datetime) -> RecoveryTarget:
        """Before the first commit that is later than ``when``. Raises RecoveryTargetError without an offset."""
        return cls(TIME, parse_time(when).isoformat(sep=" ", timespec="microseconds"))

    @classmethod
    def at_lsn(cls, text: str) -> RecoveryTarget:
        """The first record that begins at this position or behind it."""
        try:
            return cls(LSN, format_lsn(parse_lsn(text)))
        except ValueError as error:
            raise RecoveryTargetError(
                f"{text!r} is not a log sequence number",
                hint="It looks like 16/B374D848: what pg_current_wal_lsn() prints.",
            ) from error

    @classmethod
    def at_name(cls, name: str) -> RecoveryTarget:
        """A restore point made with pg_create_restore_point()."""
        encoded = name.encode("utf-8", "surrogateescape")
        if not encoded or len(encoded) > _NAME_BYTES_MAX or b"\0" in encoded or b"\n" in encoded:
            raise RecoveryTargetError(
                f"{name!r} cannot be the name of a restore point",
                hint=f"It has 1 to {_NAME_BYTES_MAX} bytes in one line.",
            )
        return cls(NAME, name)

    @classmethod
    def at_xid(cls, xid: str | int) -> RecoveryTarget:
        """The end of a transaction; with its epoch (pg_current_xact_id()) or without."""
        text = str(xid).strip()
        if not re.fullmatch(r"[0-9]{1,20}", text) or not _FIRST_XID <= int(text) < 1 << 64:
            raise RecoveryTargetError(
                f"{text!r} is not a transaction id",
                hint="It is a number: what pg_current_xact_id() returned in the transaction.",
            )
        return cls(XID, str(int(text)))

    @property
    def is_point(self) -> bool:
        """Whether recovery ends at something, instead of where the WAL ends."""
        return self.kind != LATEST

    @property
    def time(self) -> dt.datetime | None:
        """Set for a time only; aware."""
        return dt.datetime.fromisoformat(self.value) if self.kind == TIME else None

    @property
    def lsn(self) -> int | None:
        """Set for an LSN only."""
        return parse_lsn(self.value) if self.kind == LSN else None

    @property
    def xid(self) -> int | None:
        """Set for a transaction only: the 32 bits that are in the WAL."""
        return int(self.value) & 0xFFFFFFFF if self.kind == XID else None

    def __str__(self) -> str:
        names = {LATEST: "the end of the WAL", IMMEDIATE: "the end of the backup", NAME: "restore point"}
        words = names.get(self.kind, {LSN: "LSN", XID: "transaction"}.get(self.kind, self.kind))
        return f"{words} {self.value}" if self.value else words


def parse_time(when: str | dt.datetime) -> dt.datetime:
    """An aware time from ISO 8601. Raises RecoveryTargetError, above all when there is no UTC offset.

    Without an offset the time would mean another instant on every machine.
    """
    try:
        parsed = dt.datetime.fromisoformat(when.strip()) if isinstance(when, str) else when
    except ValueError as error:
        raise RecoveryTargetError(
            f"{when!r} is not a time", hint="ISO 8601, for example 2026-03-01T14:03:00+01:00."
        ) from error
    if parsed.utcoffset() is None:
        example = parsed.isoformat()
        raise RecoveryTargetError(
            f"the recovery time {when!s} has no UTC offset",
            hint=f"Say which 14:03 is meant: {example}Z is UTC, {example}+01:00 an hour ahead of it.",
        )
    return parsed


@dataclasses.dataclass(frozen=True, slots=True)
class Recovery:
    """What a restored cluster is told for its first start."""

    restore_command: str
    target: RecoveryTarget = dataclasses.field(default_factory=RecoveryTarget.latest)
    timeline: str = LATEST_TIMELINE
    """``latest``, ``current`` (that of the backup) or a decimal number."""
    inclusive: bool = True
    action: str = "promote"
    archiving: bool = False
    """False: ``archive_mode = off``. A copy must never archive into the archive of its source."""
    settings: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    """More settings, name to value."""


def recovery_settings(recovery: Recovery) -> dict[str, str]:
    """All settings in the order in which they must be read.

    Targets that are not wanted are set to nothing, because ``postgresql.conf`` may still have one of
    an earlier recovery; and before the one that is wanted, because PostgreSQL takes any assignment
    after it for a second target (``assign_recovery_target`` and its kin in ``xlogrecovery.c``).
    The same goes for commands that would be run during recovery and were meant for another one.
    """
    target = recovery.target
    parameters = {
        "recovery_target": "immediate" if target.kind == IMMEDIATE else "",
        **{f"recovery_target_{kind}": target.value if target.kind == kind else "" for kind in (TIME, LSN, NAME, XID)},
    }
    lines = {
        "restore_command": recovery.restore_command,
        "archive_cleanup_command": "",
        "recovery_end_command": "",
        "recovery_target_timeline": recovery.timeline,
        "recovery_target_inclusive": "on" if recovery.inclusive else "off",
        "recovery_target_action": recovery.action,
        **{name: value for name, value in parameters.items() if not value},
        **{name: value for name, value in parameters.items() if value},
    }
    if not recovery.archiving:
        lines["archive_mode"] = "off"
    return {**lines, **recovery.settings}


def recovery_block(recovery: Recovery) -> str:
    """The lines for ``postgresql.auto.conf``, between two marks by which a later restore finds them."""
    lines = [f"{name} = {quote(value)}" for name, value in recovery_settings(recovery).items()]
    hint = "; used while recovery.signal is there"
    return "\n".join([_BEGIN + hint, *lines, _END, ""])


def edit_auto_conf(text: str, recovery: Recovery) -> str:
    """``postgresql.auto.conf`` with the recovery settings at its end.

    Settings of the same names, and any other recovery target, become comments; an earlier block of
    ours goes. Applying it again to its own result changes nothing.
    """
    ours = recovery_settings(recovery)
    lines = []
    rest = _BLOCK.sub("", text)
    for line in rest.removesuffix("\n").split("\n") if rest else []:
        if line.startswith((_BEGIN, _END)):
            continue  # half of a block: what is left of it is treated like any other line
        match = _PARAMETER.match(line)
        name = match[1].lower() if match else ""
        stale = name in ours or name.startswith("recovery_target")
        lines.append(f"{_DISABLED}{line}" if stale else line)
    return "\n".join([*lines, recovery_block(recovery)])


def quote(value: str) -> str:
    """A value as a configuration file has it (``GUC_scanstr`` in ``guc-file.l``).

    Raises RecoveryTargetError for what a configuration file cannot hold.
    """
    if "\0" in value or "\n" in value or "\r" in value:
        raise RecoveryTargetError(f"{value!r} cannot stand in a configuration file")
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"

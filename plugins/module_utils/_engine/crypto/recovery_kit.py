# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The recovery kit: the keys on one sheet of paper, typed in again after everything else is gone.

A row holds 25 characters of base32 (no 0, 1, 8, 9 to confuse with O, I, B, g) and ends with a check
of its own, so that a typing error is found in its row. The public key is not printed: it follows
from the identity.

    CATALOG-1 row 1 of 3: ABCDE FGHIJ KLMNO PQRST UVWXY / Q4M
"""

from __future__ import annotations

import base64
import hashlib
import re
import typing as t

from ..errors import KeyFileError
from . import suite
from .keys import ROLES, Key, KeyRing

_ROW = re.compile(r"(CATALOG|DIGEST|IDENTITY)-([1-9][0-9]*) ROW ([0-9]+) OF ([0-9]+): ([A-Z2-7 ]+) / ([A-Z2-7]{3})")
_REPOSITORY = re.compile(r"^repository:\s*([0-9a-f]{32})\s*$", re.MULTILINE | re.IGNORECASE)
_PRINTED = ("catalog", "digest", "identity")
_ROW_CHARACTERS = 25


def kit_keys(keys: KeyRing, from_epoch: int = 1) -> list[Key]:
    """What belongs on the sheet: catalog key and identity of every epoch from ``from_epoch`` on.

    Raises KeyFileError, id ``no-epoch-key``, when one of the two is missing of an epoch: half a kit in a safe would be
    a nasty surprise.
    """
    epochs = sorted(epoch for epoch in keys.epochs("catalog") | keys.epochs("identity") if epoch >= from_epoch)
    found = [keys.key(role, epoch) for epoch in epochs or [from_epoch] for role in ("catalog", "identity")]
    return found if 1 in epochs else [*found, keys.digest_line()]


def write_kit(keys: t.Iterable[Key], locations: t.Iterable[str], printed_at: str) -> str:
    """The sheet as text. ``locations``: where the repository is, for people."""
    keys = [key for key in keys if key.role in _PRINTED]
    lines = [
        "CryoProtect Backup: recovery kit",
        "================================",
        "Whoever has this sheet and the repository reads every backup. Keep it in a safe, not on a computer.",
        "",
        f"repository: {keys[0].repository}",
        f"printed:    {printed_at}",
        *[f"location:   {location}" for location in locations],
    ]
    for number, key in enumerate(keys):
        if not number or key.epoch != keys[number - 1].epoch:
            lines.append("")
        lines += _rows(key)
    lines += [
        "",
        "To get back: install CryoProtect Backup on any machine, write a configuration that names the location,",
        "type the lines above into a file and run",
        "    cryobackup key import FILE",
        "    cryobackup list",
        "    cryobackup restore CLUSTER --target DIRECTORY",
    ]
    return "\n".join(lines) + "\n"


def read_kit(text: str) -> list[Key]:
    """The keys of a sheet, the public ones derived. Raises KeyFileError naming the first bad row."""
    named = _REPOSITORY.search(text)
    if named is None:
        raise KeyFileError(
            "this is no recovery kit: it has no line `repository:` with 32 hexadecimal digits",
            hint="Type the lines as they are printed, the repository line too.",
        )
    rows: dict[tuple[str, int], dict[int, str]] = {}
    totals: dict[tuple[str, int], int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        typed = " ".join(line.upper().split())
        if not typed.startswith(tuple(f"{role.upper()}-" for role in _PRINTED)):
            continue
        match = _ROW.fullmatch(typed)
        if match is None:
            raise KeyFileError(f"line {number} of the kit is not a row of a key", hint="Compare it with the sheet.")
        role, epoch, row, total, content, check = match.groups()
        content = content.replace(" ", "")
        if _row_check(role, int(epoch), int(row), content) != check:
            raise KeyFileError(
                f"line {number} of the kit ({role}-{epoch} row {row}) has a typing error",
                hint="Compare this line with the sheet, letter by letter.",
            )
        rows.setdefault((role.lower(), int(epoch)), {})[int(row)] = content
        totals[role.lower(), int(epoch)] = int(total)
    keys = [_key(named[1].lower(), role, epoch, parts, totals[role, epoch]) for (role, epoch), parts in rows.items()]
    if not keys:
        raise KeyFileError("the kit has no rows of keys", hint="Rows begin with CATALOG- or IDENTITY-.")
    keys += [
        Key("public", key.repository, key.epoch, suite.public_of(key.material))
        for key in keys
        if key.role == "identity"
    ]
    return keys


def _rows(key: Key) -> t.Iterator[str]:
    text = base64.b32encode(key.material).decode().rstrip("=")
    parts = [text[at : at + _ROW_CHARACTERS] for at in range(0, len(text), _ROW_CHARACTERS)]
    role = key.role.upper()
    for number, part in enumerate(parts, 1):
        groups = " ".join(part[at : at + 5] for at in range(0, len(part), 5))
        check = _row_check(role, key.epoch, number, part)
        yield f"{role}-{key.epoch} row {number} of {len(parts)}: {groups} / {check}"


def _row_check(role: str, epoch: int, row: int, content: str) -> str:
    digest = hashlib.sha256(f"{role}-{epoch}-{row}-{content}".encode()).digest()
    return base64.b32encode(digest).decode()[:3]


def _key(repository: str, role: str, epoch: int, parts: dict[int, str], total: int) -> Key:
    missing = [number for number in range(1, total + 1) if number not in parts]
    if missing:
        raise KeyFileError(f"the kit lacks row {missing[0]} of {role.upper()}-{epoch}", hint="Type all rows.")
    text = "".join(parts[number] for number in range(1, total + 1))
    material = base64.b32decode(text + "=" * (-len(text) % 8))
    if len(material) != ROLES[role]:
        raise KeyFileError(f"the kit's key {role.upper()}-{epoch} has a wrong length")
    return Key(role, repository, epoch, material)

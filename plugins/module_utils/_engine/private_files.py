# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may read a file with a secret."""

from __future__ import annotations

import os
import stat
import struct

_ACCESS_LIST = "system.posix_acl_access"
_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
"""Kind, rights and identifier: the kernel's form of an access control list, include/uapi/linux/posix_acl_xattr.h."""
_OWNER, _USER, _MASK = 0x01, 0x02, 0x10


def readable_by_others(descriptor: int) -> bool:
    """Whether anybody but root and this process's user may read (or write) an open file.

    The mode alone does not tell: where a file has an access control list, the group's rights in the mode are the most
    that the list may give anybody. systemd hands credentials over like that: owner root, mode 0440, and a list with
    this one user.
    """
    status = os.fstat(descriptor)
    mode = stat.S_IMODE(status.st_mode)
    if not mode & 0o077:
        return False
    if mode & 0o007 or status.st_uid not in (0, os.geteuid()):
        return True
    try:
        entries = os.getxattr(descriptor, _ACCESS_LIST)
    except OSError:
        return True  # no list, or a file system without lists: then it is the group that may
    if len(entries) % _ENTRY.size != _HEADER.size or _HEADER.unpack_from(entries)[0] != 2:
        return True
    return any(_gives_others(*entry) for entry in _ENTRY.iter_unpack(entries[_HEADER.size :]))


def _gives_others(kind: int, rights: int, identifier: int) -> bool:
    # The mask gives nothing by itself, and only takes away from the others.
    if kind in (_OWNER, _MASK) or (kind == _USER and identifier in (0, os.geteuid())):
        return False
    return bool(rights)

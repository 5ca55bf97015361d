# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A directory on an SFTP server as a location. What it promises and what it cannot: docs/sftp.md.

location    what the engine sees
writer      one object in the making
channel     the connection: one thread, made when it is needed and anew when it broke
errors      from what SSH, SFTP and the network say to our errors
"""

from __future__ import annotations

from .location import SftpLocation

__all__ = ["SftpLocation"]

# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The verify ladder: presence, content, restore in a sandbox.

``presence`` asks whether every object is there and has its size; ``content`` reads, authenticates and compares every
byte; ``restore`` starts PostgreSQL on the backup. What is wrong is a result that names location, object, backup and
files, not an error: an error means that it could not be found out.
"""

from __future__ import annotations

# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing to one location what others have: after an outage, to a second site, to a new bucket.

``wanted`` says what ought to be everywhere, ``stock`` what is where; ``delivery`` and ``backup`` bring what is missing,
object by object (``tasks``, ``transfer``, ``objects``). docs/repository-format.md, section 12, has the protocol.
"""

from __future__ import annotations

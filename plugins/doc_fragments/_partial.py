# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happens when something was done in part only. PRIVATE to the collection."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  fail_on_partial:
    description:
      - Whether the task fails when the work was done in part only, for instance when one of two locations did not
        answer. What was done is in the result of the failed task.
      - With V(false) the task succeeds with a warning, and it is up to the playbook to look at the result.
    type: bool
    default: true
"""

#!/usr/bin/python
# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Delete the backups and the WAL that the retention rules drop."""

from __future__ import annotations

DOCUMENTATION = r"""
module: retention_prune
short_description: Delete the backups and the WAL that the retention rules drop
version_added: 0.1.0
description:
  - Applies the retention rules of the configuration to all backups of the repository. The backups that no rule keeps,
    and the WAL that no kept backup needs, are marked, and are deleted by a later run when the mark has stood for
    C(retention.grace).
  - The newest backup of a source and its newest verified one are always kept. Every backup is complete in itself, so
    that none is kept for the sake of another.
  - It is safe beside running backups and restores, and after a crash at any point.
extends_documentation_fragment:
  - cryoprotect.backup._attributes
  - cryoprotect.backup._config
  - cryoprotect.backup._partial
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - Shows the backups that there are and those that the rules keep.
  idempotent:
    support: full
    details:
      - A run right after another has nothing to do. As time passes there is more to delete.
options:
  confirm:
    description:
      - Delete even when more than the share C(retention.max_delete_share) of the backups would go, or the last backup
        of a cluster that was made anew. Without it such a plan fails with RV(error.id=refused), and nothing is changed.
      - Look at the plan in check mode with C(diff) before.
    type: bool
    default: false
  grace:
    description:
      - For how long a mark must have stood before what it names is deleted, for instance V(12h), V(3d), or V(0) for at
        once. By default as configured.
    type: str
seealso:
  - module: cryoprotect.backup.backup_info
author:
  - CryoProtect Backup contributors (@cryoprotect)
"""

EXAMPLES = r"""
- name: What would go?
  cryoprotect.backup.retention_prune:
  check_mode: true
  diff: true
  become: true
  become_user: postgres

- name: Delete what the rules drop
  cryoprotect.backup.retention_prune:
  become: true
  become_user: postgres

- name: The rules were tightened, and we have looked at the plan
  cryoprotect.backup.retention_prune:
    confirm: true
  become: true
  become_user: postgres
"""

RETURN = r"""
msg:
  description: What was done.
  returned: always
  type: str
  sample: 12 backups are kept, 3 dropped
keep:
  description: Ids of the backups that the rules keep, newest first.
  returned: when there was a plan
  type: list
  elements: str
  sample: [20260301T140000Z-5f3a9c1e, 20260301T010000Z-0d9be1a2]
delete:
  description: Ids of the backups that they drop. They exist until their mark is old enough.
  returned: when there was a plan
  type: list
  elements: str
  sample: []
brake:
  description: Why the plan needs O(confirm), if it does.
  returned: when there was a plan
  type: str
  sample: deletes 9 of 10 full backups of main
dry_run:
  description: Whether nothing was done, because of check mode.
  returned: when there was a plan
  type: bool
  sample: false
locations:
  description:
    - What was done in each location; in check mode what would be. Objects C(marked) now and C(waiting) in marks that
      are too young; deleted C(manifests), C(packs) and files of C(wal); and C(bytes_freed). C(hidden) is null but for
      buckets that keep versions, where it counts what is deleted and still stored.
  returned: when there was a plan
  type: dict
  sample:
    local: {marked: 14, waiting: 0, manifests: 0, packs: 0, wal: 0, bytes_freed: 0, swept: 0, hidden: null}
errors:
  description: Locations where it could not be done, with the error of each.
  returned: when there was a plan
  type: dict
  sample: {}
error:
  description: What went wrong.
  returned: on failure
  type: dict
  contains:
    id:
      description: What it is, a stable name for programs.
      type: str
      returned: always
      sample: refused
    message:
      description: What happened.
      type: str
      returned: always
      sample: "the plan needs an explicit yes: deletes 9 of 10 full backups of main"
    hint:
      description: What is still safe, and what to do next.
      type: str
      returned: always
      sample: Nothing was deleted. Look at the plan first; if it is what you want, confirm it.
exit_code:
  description: What the command line would have ended with. 0 is success, 3 done in part.
  returned: always
  type: int
  sample: 0
"""

import typing as t

from ansible_collections.cryoprotect.backup.plugins.module_utils._module import (
    Outcome,
    Task,
    config_option,
    partial_option,
    run,
)

if t.TYPE_CHECKING:
    from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.prune import PruneResult


def work(task: Task) -> Outcome:
    from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.prune import prune, refusal
    from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.retention import parse_grace

    options = task.options
    result = prune(
        task.config,
        now=task.now(),
        dry_run=task.check_mode,
        yes=options["confirm"],
        grace=None if options["grace"] is None else parse_grace(options["grace"]),
        reporter=task.reporter,
    )
    if result.plan.brake and not options["confirm"]:
        # Without check mode this would have been the end of it.
        raise refusal(result.plan)
    return Outcome(words(result), result.changed, result.as_dict(), result.exit_code, diff(result))


def words(result: PruneResult) -> str:
    plan = result.plan
    failed = f". Not pruned: {', '.join(result.errors)}" if result.errors else ""
    keeps = len(plan.keeps)
    return f"{keeps} {'backup is' if keeps == 1 else 'backups are'} kept, {len(plan.deletes)} dropped{failed}"


def diff(result: PruneResult) -> dict[str, str]:
    """What is marked already is gone, as far as this task is concerned: it would not be a change."""
    kept = set(result.plan.after)
    lines = [
        (f"{decision.backup.source} {decision.backup.kind} {decision.backup_id}\n", decision.backup_id in kept)
        for decision in result.plan.decisions
    ]
    after = "".join(line for line, keep in lines if keep)
    before = "".join(line for line, _keep in lines) if result.changed else after
    return {"before": before, "after": after, "before_header": "backups", "after_header": "backups that are kept"}


def main() -> t.NoReturn:
    run(
        work,
        {
            **config_option(),
            **partial_option(),
            "confirm": {"type": "bool", "default": False},
            "grace": {"type": "str"},
        },
    )


if __name__ == "__main__":
    main()

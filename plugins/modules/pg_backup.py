#!/usr/bin/python
# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take a physical backup of a PostgreSQL cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_backup
short_description: Take a physical backup of a PostgreSQL cluster
version_added: 0.1.0
description:
  - Takes a backup of a running PostgreSQL cluster and writes it, encrypted, to every location of the repository in one
    pass.
  - A backup exists when it is durable in at least one location, together with the WAL it needs. Whenever the module
    fails without a RV(ignore:backup) in its result, there is no new backup, and all earlier ones are as they were.
extends_documentation_fragment:
  - cryoprotect.backup._attributes
  - cryoprotect.backup._config
  - cryoprotect.backup._partial
attributes:
  check_mode:
    support: full
    details:
      - The configuration, the keys, the locations, the connection, and whether the cluster can be backed up at all are
        tried for real, without changing anything. What would stop the backup fails the task in check mode too.
  diff_mode:
    support: none
  idempotent:
    support: partial
    details:
      - With O(max_age) and without O(force).
options:
  cluster:
    description: Name of the cluster in the configuration.
    type: str
    required: true
  state:
    description: There shall be a backup.
    type: str
    choices: [present]
    default: present
  type:
    description:
      - V(full) reads the whole cluster.
      - V(incremental) stores what has changed since the newest backup, which may be of either type. It restores by
        itself, as every backup does. Where there is no backup that it can be based on, a full one is taken, and
        RV(backup.change_detection.reason) says why.
    type: str
    choices: [full, incremental]
    default: full
  label:
    description: One line about the backup for people, at most 200 characters.
    type: str
    default: ""
  max_age:
    description:
      - A time such as V(90min), V(24h), V(7d) or V(2w). When there is a good backup that was finished within this
        time, nothing is done, and RV(backup) is that one.
      - Good is a backup of O(type) or of a fuller type, of the cluster that is there now, with status V(ok), in all
        locations, that no verification has found damaged.
      - Without it every run takes a backup and is a change.
    type: str
  force:
    description: Take a backup even when there is a good one of O(max_age).
    type: bool
    default: false
  space_check:
    description:
      - Do not begin a backup that surely does not fit into a required location (RV(error.id=no-room)), and leave
        optional locations out that cannot take it.
      - With V(false) it is begun, and a location that becomes full on the way is left out from then on.
    type: bool
    default: true
notes:
  - Only one backup of a cluster is taken at a time on a host; a second task fails with RV(error.id=busy).
seealso:
  - module: cryoprotect.backup.backup_verify
  - module: cryoprotect.backup.backup_restore
author:
  - CryoProtect Backup contributors (@cryoprotect)
"""

EXAMPLES = r"""
- name: A full backup
  cryoprotect.backup.pg_backup:
    cluster: main
  become: true
  become_user: postgres

- name: An incremental backup, unless there is one of the last six hours
  cryoprotect.backup.pg_backup:
    cluster: main
    type: incremental
    max_age: 6h
  become: true
  become_user: postgres

- name: A backup before the deployment, whatever there is
  cryoprotect.backup.pg_backup:
    cluster: main
    type: incremental
    force: true
    label: "before release {{ release }}"
  become: true
  become_user: postgres

- name: Go on when one of the locations is down, and look at the result
  cryoprotect.backup.pg_backup:
    cluster: main
    fail_on_partial: false
  register: backup_task
  become: true
  become_user: postgres
"""

RETURN = r"""
msg:
  description: What was done, or why nothing was.
  returned: always
  type: str
  sample: "main: incremental backup 20260301T140000Z-5f3a9c1e was taken; its status is ok"
backup:
  description:
    - The backup that was taken, or the one that is good enough.
    - In check mode, when one would be taken, what is known of it beforehand. That is C(source), C(requested),
      C(type), C(parent), C(label), C(change_detection) and C(locations).
    - Absent when the backup failed.
  returned: when there is a backup, or in check mode would be
  type: dict
  contains:
    backup_id:
      description: Its name, by which it can be restored and verified.
      type: str
      returned: when there is a backup
      sample: 20260301T140000Z-5f3a9c1e
    source:
      description: The cluster.
      type: str
      returned: always
      sample: main
    requested:
      description: The type that was asked for.
      type: str
      returned: always
      sample: incremental
    type:
      description: The type it has.
      type: str
      returned: always
      sample: incremental
    parent:
      description: The backup that an incremental is based on. The incremental needs it no more to be restored.
      type: str
      returned: always
      sample: 20260301T010000Z-0d9be1a2
    status:
      description:
        - V(ok).
        - V(damaged) when pages of the cluster itself were broken; the backup was kept, see RV(backup.damage).
        - V(degraded) when it is not in all locations, see RV(backup.locations).
      type: str
      returned: when there is a backup
      sample: ok
    label:
      description: The label.
      type: str
      returned: always
      sample: before release 4.1
    started_at:
      description: When it was begun, ISO 8601.
      type: str
      returned: when there is a backup
      sample: "2026-03-01T14:00:00.120000+00:00"
    finished_at:
      description: When it was finished, ISO 8601.
      type: str
      returned: when there is a backup
      sample: "2026-03-01T14:00:09.480000+00:00"
    seconds:
      description: How long it took.
      type: float
      returned: when there is a backup
      sample: 9.36
    start_lsn:
      description: Where in the WAL it begins.
      type: str
      returned: when there is a backup
      sample: 16/B3000028
    stop_lsn:
      description: Where in the WAL it becomes consistent.
      type: str
      returned: when there is a backup
      sample: 16/B3000138
    timeline:
      description: The timeline.
      type: int
      returned: when there is a backup
      sample: 1
    bytes_source:
      description: Size of the cluster.
      type: int
      returned: when there is a backup
      sample: 3221225472
    bytes_read:
      description: What was read of it.
      type: int
      returned: when there is a backup
      sample: 41943040
    bytes_stored:
      description: What was added to each location.
      type: int
      returned: when there is a backup
      sample: 5242880
    locations:
      description: All configured locations, by name, each with C(status) (V(ok) or V(failed)), the C(error) if any,
        and where requests cost the number of C(requests) by kind.
      type: dict
      returned: always
      sample: {"local": {"status": "ok"}, "cloud": {"status": "ok"}}
    change_detection:
      description: How changes were found, and why in this way.
      type: dict
      returned: always
      contains:
        reason:
          description: Why this way.
          type: str
          returned: always
          sample: based on the newest backup, 20260301T010000Z-0d9be1a2
    compaction:
      description: What was stored again although it had not changed, so that packs of earlier backups can go.
        C(null) when nothing was.
      type: dict
      returned: when there is a backup
      sample: {"bytes": 16777216, "packs": 9, "packs_left": 8, "pages_kept": 0, "bytes_live": 322961408,
        "bytes_overhead": 171966464, "bytes_overhead_borne": 161480704}
    damage:
      description: Files with broken pages, each with C(path) and C(blocks); 100 of them at most.
      type: list
      elements: dict
      returned: when there is a backup
      sample: []
error:
  description: What went wrong.
  returned: on failure
  type: dict
  contains:
    id:
      description: What it is, a stable name for programs.
      type: str
      returned: always
      sample: cluster-unreachable
    message:
      description: What happened.
      type: str
      returned: always
      sample: "cannot connect to PostgreSQL (host=/var/run/postgresql): No such file or directory"
    hint:
      description: What is still safe, and what to do next.
      type: str
      returned: always
      sample: Is the cluster running, and does `connection` in the configuration name it?
exit_code:
  description: What the command line would have ended with. 0 is success, 3 done in part.
  returned: always
  type: int
  sample: 0
"""

import typing as t

from ansible_collections.cryoprotect.backup.plugins.module_utils._module import (
    Fields,
    Outcome,
    Task,
    capped,
    config_option,
    partial_option,
    run,
)

if t.TYPE_CHECKING:
    from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.postgres.ensure import Ensured


def work(task: Task) -> Outcome:
    from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.postgres.ensure import (
        BackupWish,
        ensure_backup,
        parse_age,
    )

    options = task.options
    age = None if options["max_age"] is None or options["force"] else parse_age(options["max_age"])
    ensured = ensure_backup(
        task.config,
        task.config.cluster(options["cluster"]),
        BackupWish(options["type"], options["label"], age, options["space_check"]),
        dry_run=task.check_mode,
        reporter=task.reporter,
        clock=task.now,
    )
    backup = ensured.backup.as_dict()
    if "damage" in backup:
        backup["damage"] = capped(backup["damage"])
    return Outcome(words(ensured, backup), ensured.taken, {"backup": backup}, ensured.backup.exit_code)


def words(ensured: Ensured, backup: Fields) -> str:
    if "backup_id" not in backup:
        why = backup["change_detection"]["reason"]
        return f"{backup['source']}: {ensured.reason}; it would be {backup['type']}: {why}"
    if not ensured.taken:
        return f"{backup['source']}: {ensured.reason}; its status is {backup['status']}"
    lacking = [name for name, place in backup["locations"].items() if place["status"] != "ok"]
    where = f", and it is not in {', '.join(lacking)}" if lacking else ""
    taken = f"{backup['type']} backup {backup['backup_id']} was taken"
    return f"{backup['source']}: {taken}; its status is {backup['status']}{where}"


def main() -> t.NoReturn:
    run(
        work,
        {
            **config_option(),
            **partial_option(),
            "cluster": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present"], "default": "present"},
            "type": {"type": "str", "choices": ["full", "incremental"], "default": "full"},
            "label": {"type": "str", "default": ""},
            "max_age": {"type": "str"},
            "force": {"type": "bool", "default": False},
            "space_check": {"type": "bool", "default": True},
        },
    )


if __name__ == "__main__":
    main()

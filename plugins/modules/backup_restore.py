#!/usr/bin/python
# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Restore a PostgreSQL cluster to a point in time."""

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_restore
short_description: Restore a PostgreSQL cluster to a point in time
version_added: 0.1.0
description:
  - Restores the data directory of a cluster from its backups, so that PostgreSQL, when it is started there, recovers to
    the point that was asked for. The backup that leads there with the least WAL is chosen.
  - A running cluster is never touched, and neither is a directory that holds anything else than this cluster.
  - A restore that is interrupted leaves nothing that PostgreSQL would start on. Run it again with O(delta) to go on.
extends_documentation_fragment:
  - cryoprotect.backup._attributes
  - cryoprotect.backup._config
  - cryoprotect.backup._partial
attributes:
  check_mode:
    support: full
    details:
      - Backup, WAL, keys, target directory and room are checked for real, and nothing is written. What would stop the
        restore fails the task in check mode too.
  diff_mode:
    support: none
  idempotent:
    support: none
    details:
      - A target that holds something is refused with RV(error.id=target-not-empty), and left as it is, also when it
        was restored to by the same task before. With O(delta) it is made equal to the backup again.
      - To restore once only, let the task depend on the target, as the last example does.
options:
  cluster:
    description:
      - The name that its backups have.
      - It need not be in the configuration; the repository knows all about it.
    type: str
    required: true
  target:
    description: The data directory to write. It is missing or empty, unless O(delta).
    type: path
    required: true
  backup:
    description: Restore from this backup. Its id, or the beginning or the end of it. By default the one that fits.
    type: str
  to_time:
    description:
      - Recover to the last commit not later than this time, ISO 8601 with the offset from UTC, for instance
        V(2026-03-01T14:03:00+01:00).
    type: str
  to_lsn:
    description: Recover to this position in the WAL, for instance V(16/B374D848).
    type: str
  to_name:
    description: Recover to this restore point, made with C(pg_create_restore_point).
    type: str
  to_xid:
    description: Recover to the end of this transaction.
    type: str
  immediate:
    description: Recover to the end of the backup itself, the first state that is consistent.
    type: bool
    default: false
  inclusive:
    description: Whether what is exactly at the goal is still recovered.
    type: bool
    default: true
  timeline:
    description: V(latest), V(current) (that of the backup), or a number.
    type: str
    default: latest
  action:
    description: What PostgreSQL does when it has reached the goal.
    type: str
    choices: [promote, pause, shutdown]
    default: promote
  delta:
    description:
      - The target may hold this cluster already. What differs is replaced, what is not in the backup is removed.
    type: bool
    default: false
  tablespaces:
    description: New directories of tablespaces, by their old directory or their OID.
    type: dict
    default: {}
  archiving:
    description:
      - Whether the restored cluster archives its WAL.
      - V(auto) means as before in the data directory that the configuration names, and off anywhere else, because two
        clusters must not archive under one system identifier.
    type: str
    choices: [auto, preserve, "off"]
    default: auto
  owner:
    description: The user it belongs to. By default as recorded, or whoever runs the module if that is not root.
    type: str
  workers:
    description: Number of threads. By default as configured for the cluster.
    type: int
  without:
    description: Locations that are lost for good, so that recovery does not wait for them.
    type: list
    elements: str
    default: []
  start:
    description: Start PostgreSQL on the target and wait until recovery has reached the goal.
    type: bool
    default: false
  start_timeout:
    description: With O(start), how many seconds start and recovery may take.
    type: float
    default: 3600
  port:
    description: Write this port into the restored configuration.
    type: int
  bin_directory:
    description: Where C(pg_ctl) of the right major version is. By default where distributions have it.
    type: path
notes:
  - Without a goal recovery goes on to the end of the archived WAL.
  - The key that can read (C(data.identity)) is needed.
seealso:
  - module: cryoprotect.backup.backup_info
  - module: cryoprotect.backup.backup_verify
author:
  - CryoProtect Backup contributors (@cryoprotect)
"""

EXAMPLES = r"""
- name: The cluster as it was just before the accident, beside the living one
  cryoprotect.backup.backup_restore:
    cluster: main
    target: /var/lib/postgresql/before-the-accident
    to_time: "2026-03-01T14:02:59+01:00"
    port: 5433
    start: true
  become: true
  become_user: postgres

- name: What would be restored?
  cryoprotect.backup.backup_restore:
    cluster: main
    target: /var/lib/postgresql/17/main
  check_mode: true
  become: true
  become_user: postgres

- name: The stopped cluster goes back to a restore point, where it is
  cryoprotect.backup.backup_restore:
    cluster: main
    target: /var/lib/postgresql/17/main
    to_name: before_release_4_1
    delta: true
  become: true
  become_user: postgres

- name: See whether there is a cluster
  ansible.builtin.stat:
    path: /var/lib/postgresql/17/main/PG_VERSION
  register: cluster_version
  become: true

- name: Restore it on a new machine, once
  cryoprotect.backup.backup_restore:
    cluster: main
    target: /var/lib/postgresql/17/main
  when: not cluster_version.stat.exists
  become: true
  become_user: postgres
"""

RETURN = r"""
msg:
  description: What was done.
  returned: always
  type: str
  sample: main was restored to /srv/restored from backup 20260301T010000Z-0d9be1a2
restore:
  description: The restore; in check mode what it would be.
  returned: when it was done, or in check mode would be
  type: dict
  contains:
    status:
      description: V(ok), or V(partial) when the WAL ends at a gap with more behind it that cannot be reached.
      type: str
      returned: always
      sample: ok
    backup_id:
      description: The backup that was restored.
      type: str
      returned: always
      sample: 20260301T010000Z-0d9be1a2
    source:
      description: The cluster.
      type: str
      returned: always
      sample: main
    kind:
      description: Type of the backup.
      type: str
      returned: always
      sample: incremental
    target:
      description: The data directory.
      type: str
      returned: always
      sample: /srv/restored
    files:
      description: Number of files.
      type: int
      returned: always
      sample: 1284
    bytes_restored:
      description: Size of all files.
      type: int
      returned: always
      sample: 3221225472
    bytes_fetched:
      description: What of it was fetched from the repository.
      type: int
      returned: always
      sample: 3221225472
    bytes_compared:
      description: What of it was compared with what was there, with O(delta).
      type: int
      returned: always
      sample: 0
    bytes_written:
      description: What of it was written.
      type: int
      returned: always
      sample: 3221225472
    locations:
      description: >-
        By name, C(status) (V(ok), or V(failed) when it did not answer, also from the middle of the restore on),
        C(bytes_read) of its packs, and C(error).
      type: dict
      returned: always
    seconds:
      description: How long it took.
      type: float
      returned: always
      sample: 8.1
    recovery:
      description: Where recovery ends, with C(target), C(value), C(timeline), C(inclusive) and C(action).
      type: dict
      returned: always
    archiving:
      description: V(preserved) or V(off).
      type: str
      returned: always
      sample: "off"
    tablespaces:
      description: Directories of tablespaces by OID.
      type: dict
      returned: always
    owner:
      description: The user it belongs to.
      type: str
      returned: always
      sample: postgres
    started:
      description: Whether PostgreSQL runs on it.
      type: bool
      returned: always
      sample: true
    state:
      description: What C(pg_control) said about the started cluster.
      type: str
      returned: always
      sample: in production
    config_files:
      description: Configuration that lay outside of the data directory. Its copy is in C(.cryobackup/config) there.
      type: list
      elements: str
      returned: always
    kept_wal:
      description: WAL in the target that was never archived and was kept for recovery; the first 100 files.
      type: list
      elements: str
      returned: always
    saved_wal:
      description:
        - WAL in the target that was never archived and that recovery does not use, or that PostgreSQL would remove
          after it. It was put aside in C(directory), relative to the target; the first 100 C(files).
      type: dict
      returned: always
      sample: {directory: null, files: []}
    dry_run:
      description: Whether nothing was written, because of check mode.
      type: bool
      returned: always
      sample: false
    warnings:
      description: What a person should know about it. The task warns of it too.
      type: list
      elements: str
      returned: always
    next_steps:
      description: What is left to be done, in words.
      type: list
      elements: str
      returned: always
error:
  description: What went wrong.
  returned: on failure
  type: dict
  contains:
    id:
      description: What it is, a stable name for programs.
      type: str
      returned: always
      sample: target-not-empty
    message:
      description: What happened.
      type: str
      returned: always
      sample: /srv/restored is not empty
    hint:
      description: What is still safe, and what to do next.
      type: str
      returned: always
      sample: Use an empty directory; or, if it is this cluster and may be overwritten, --delta. Nothing was changed.
exit_code:
  description: What the command line would have ended with. 0 is success, 3 done in part, 4 damage.
  returned: always
  type: int
  sample: 0
"""

import typing as t

from ansible_collections.cryoprotect.backup.plugins.module_utils._module import (
    Outcome,
    Task,
    capped,
    config_option,
    partial_option,
    run,
)

GOALS = ("to_time", "to_lsn", "to_name", "to_xid", "immediate")


def work(task: Task) -> Outcome:
    from pathlib import Path

    from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.postgres.recovery import RecoveryTarget
    from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.postgres.restore import (
        RestoreRequest,
        restore_cluster,
    )

    options = task.options
    goals: dict[str, t.Callable[[str], RecoveryTarget]] = {
        "to_time": RecoveryTarget.at_time,
        "to_lsn": RecoveryTarget.at_lsn,
        "to_name": RecoveryTarget.at_name,
        "to_xid": RecoveryTarget.at_xid,
        "immediate": lambda _wanted: RecoveryTarget.immediate(),
    }
    wanted = [make(options[name]) for name, make in goals.items() if options[name]]
    request = RestoreRequest(
        target=Path(options["target"]),
        backup=options["backup"],
        goal=wanted[0] if wanted else RecoveryTarget.latest(),
        inclusive=options["inclusive"],
        timeline=options["timeline"],
        action=options["action"],
        delta=options["delta"],
        tablespaces={str(old): str(new) for old, new in options["tablespaces"].items()},
        archiving=options["archiving"],
        workers=options["workers"],
        owner=options["owner"],
        without=tuple(options["without"]),
        dry_run=task.check_mode,
        start=options["start"],
        start_timeout=options["start_timeout"],
        port=options["port"],
        bin_directory=Path(options["bin_directory"]) if options["bin_directory"] else None,
    )
    result = restore_cluster(task.config, options["cluster"], request, reporter=task.reporter, clock=task.now)
    done = "would be" if result.dry_run else "was"
    msg = f"{result.source} {done} restored to {result.target} from backup {result.backup_id}"
    saved_wal = {**result.saved_wal, "files": capped(result.saved_wal["files"])}
    restore = {**result.as_dict(), "kept_wal": capped(result.kept_wal), "saved_wal": saved_wal}
    return Outcome(msg, changed=True, result={"restore": restore}, exit_code=result.exit_code)


def main() -> t.NoReturn:
    run(
        work,
        {
            **config_option(),
            **partial_option(),
            "cluster": {"type": "str", "required": True},
            "target": {"type": "path", "required": True},
            "backup": {"type": "str"},
            "to_time": {"type": "str"},
            "to_lsn": {"type": "str"},
            "to_name": {"type": "str"},
            "to_xid": {"type": "str"},
            "immediate": {"type": "bool", "default": False},
            "inclusive": {"type": "bool", "default": True},
            "timeline": {"type": "str", "default": "latest"},
            "action": {"type": "str", "choices": ["promote", "pause", "shutdown"], "default": "promote"},
            "delta": {"type": "bool", "default": False},
            "tablespaces": {"type": "dict", "default": {}},
            "archiving": {"type": "str", "choices": ["auto", "preserve", "off"], "default": "auto"},
            "owner": {"type": "str"},
            "workers": {"type": "int"},
            "without": {"type": "list", "elements": "str", "default": []},
            "start": {"type": "bool", "default": False},
            "start_timeout": {"type": "float", "default": 3600},
            "port": {"type": "int"},
            "bin_directory": {"type": "path"},
        },
        mutually_exclusive=[GOALS],
    )


if __name__ == "__main__":
    main()

#!/usr/bin/python
# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show backups, and how well everything is backed up."""

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_info
short_description: Show backups, and how well everything is backed up
version_added: 0.1.0
description:
  - Shows the backups of the repository, the state of its locations, and what a person should look at.
  - Nothing is ever changed, and the key that can read is not needed.
extends_documentation_fragment:
  - cryoprotect.backup._attributes
  - cryoprotect.backup._config
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  source:
    description: Show the backups of this cluster only.
    type: str
  backup:
    description: Show all about this backup. Its id, or the beginning or the end of it.
    type: str
  latest:
    description: Show all about the newest backup of this cluster.
    type: str
  limit:
    description: How many backups to list at most, the newest ones. V(0) for all.
    type: int
    default: 100
notes:
  - A location that does not answer, or a manifest that cannot be read, is no failure of this module. It warns, and
    RV(complete) is V(false).
seealso:
  - module: cryoprotect.backup.backup_verify
  - module: cryoprotect.backup.pg_backup
author:
  - CryoProtect Backup contributors (@cryoprotect)
"""

EXAMPLES = r"""
- name: What is there?
  cryoprotect.backup.backup_info:
  register: backups
  become: true
  become_user: postgres

- name: Everything is as it should be
  ansible.builtin.assert:
    that:
      - backups.complete
      - backups.attention | length == 0
    fail_msg: "{{ backups.attention }}"

- name: The newest backup of a cluster, with all its details
  cryoprotect.backup.backup_info:
    latest: main
  register: newest
  become: true
  become_user: postgres
"""

RETURN = r"""
msg:
  description: How many there are.
  returned: always
  type: str
  sample: 42 backups
complete:
  description: Whether all locations answered, and all manifests could be read.
  returned: success
  type: bool
  sample: true
repository_id:
  description: The repository.
  returned: success
  type: str
  sample: 8c1b2b7a0e9f4d53a8e1f6f0c2d94b17
backups:
  description: The backups, oldest first; the newest O(limit) of them.
  returned: success
  type: list
  elements: dict
  contains:
    backup_id:
      description: Its name.
      type: str
      returned: always
      sample: 20260301T140000Z-5f3a9c1e
    source:
      description: What it is a backup of.
      type: str
      returned: always
      sample: main
    type:
      description: Its type.
      type: str
      returned: always
      sample: full
    parent:
      description: The backup that it was based on.
      type: str
      returned: always
    status:
      description:
        - V(ok); V(damaged), if pages of the cluster were broken when it was made; V(degraded), while a location that
          answers lacks it.
      type: str
      returned: always
      sample: ok
    label:
      description: Its label.
      type: str
      returned: always
      sample: ""
    started_at:
      description: When it was begun, ISO 8601.
      type: str
      returned: always
      sample: "2026-03-01T14:00:00.120000+00:00"
    finished_at:
      description: When it was finished, ISO 8601.
      type: str
      returned: always
      sample: "2026-03-01T14:00:09.480000+00:00"
    bytes_source:
      description: Size of the source.
      type: int
      returned: always
      sample: 3221225472
    bytes_stored:
      description: What it added to each location.
      type: int
      returned: always
      sample: 734003200
    locations:
      description: Where it is.
      type: list
      elements: str
      returned: always
      sample: [local, cloud]
    epoch:
      description: The epoch of the keys that it was made with; it counts from 1, each rotation begins a new one.
      type: int
      returned: always
      sample: 1
    pinned:
      description: Whether it is kept whatever the rules say.
      type: bool
      returned: always
      sample: false
    pin_reason:
      description: Why it is pinned. Null where it is not.
      type: str
      returned: always
      sample: before release 4
    pinned_until:
      description: When the pin ends by itself. Null where it does not.
      type: str
      returned: always
      sample: "2026-03-15T14:00:00+00:00"
    verified:
      description: The verification that counts, the newest unless an older failure stands.
      type: dict
      returned: always
    restored:
      description: The newest restore of it that succeeded, if nothing was found wrong since.
      type: dict
      returned: always
backups_total:
  description: How many backups there are.
  returned: success
  type: int
  sample: 42
sources:
  description: For each cluster and file set the number of backups, the newest, the newest verified, what is running.
  returned: success
  type: dict
locations:
  description: For each location whether it answers, where it is, what room it has, and how many backups it lacks.
  returned: success
  type: dict
attention:
  description: What a person should look at, in words. Empty when all is well.
  returned: success
  type: list
  elements: str
  sample: ["source main: no backup has been verified (level content or restore)"]
unreadable:
  description: Manifests that no location has in a readable state, each with C(name), C(id), C(message), C(hint).
  returned: success
  type: list
  elements: dict
  sample: []
backup:
  description: All about one backup. As in RV(backups), with C(host), C(files), C(packs), C(postgres) and more.
  returned: with O(backup) or O(latest)
  type: dict
error:
  description: What went wrong.
  returned: on failure
  type: dict
  contains:
    id:
      description: What it is, a stable name for programs.
      type: str
      returned: always
      sample: unknown-source
    message:
      description: What happened.
      type: str
      returned: always
      sample: "there is no source 'mian': /etc/cryobackup/config.yml does not name it"
    hint:
      description: What is still safe, and what to do next.
      type: str
      returned: always
      sample: "The configuration has: main."
exit_code:
  description: What the command line would have ended with. 0 is success.
  returned: always
  type: int
  sample: 0
"""

import typing as t

from ansible_collections.cryoprotect.backup.plugins.module_utils._module import (
    Outcome,
    Task,
    config_option,
    run,
)


def work(task: Task) -> Outcome:
    from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.report.overview import overview

    options = task.options
    found = overview(
        task.config,
        source=options["source"],
        backup=options["backup"],
        latest=options["latest"],
        limit=options["limit"] or None,
        now=task.now(),
        reporter=task.reporter,
    )
    count = found["backups_total"]
    return Outcome(f"{count} backup{'' if count == 1 else 's'}", changed=False, result=found)


def main() -> t.NoReturn:
    run(
        work,
        {
            **config_option(),
            "source": {"type": "str"},
            "backup": {"type": "str"},
            "latest": {"type": "str"},
            "limit": {"type": "int", "default": 100},
        },
        mutually_exclusive=[("backup", "latest")],
    )


if __name__ == "__main__":
    main()

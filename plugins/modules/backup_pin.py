#!/usr/bin/python
# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep a backup whatever the retention rules say, or let them decide again."""

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_pin
short_description: Keep a backup whatever the retention rules say
version_added: 0.1.0
description:
  - A pinned backup stays until it is unpinned, with everything it needs. A pin changes nothing for any other backup.
  - An old backup of a cluster holds all WAL since then, so pin it for a time.
extends_documentation_fragment:
  - cryoprotect.backup._attributes
  - cryoprotect.backup._config
  - cryoprotect.backup._partial
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  backup:
    description: The backup. Its id, or the beginning or the end of it.
    type: str
  latest:
    description: The newest backup of this cluster. It is another one as soon as there is a newer one.
    type: str
  state:
    description: Whether there is to be a pin.
    type: str
    choices: [present, absent]
    default: present
  reason:
    description: Why it stays, in one line of at most 200 characters for people. Required with O(state=present).
    type: str
  until:
    description:
      - When the pin ends, ISO 8601 with the offset from UTC, for instance V(2026-03-08T12:00:00+01:00). It ends with
        the first backup of the same source that is finished after that time.
      - Without it the backup stays until it is unpinned.
    type: str
seealso:
  - module: cryoprotect.backup.pg_backup
  - module: cryoprotect.backup.retention_prune
author:
  - CryoProtect Backup contributors (@cryoprotect)
"""

EXAMPLES = r"""
- name: A backup before the release
  cryoprotect.backup.pg_backup:
    cluster: main
    label: before release 4
  register: before
  become: true
  become_user: postgres

- name: It stays until the release has proven itself
  cryoprotect.backup.backup_pin:
    backup: "{{ before.backup.backup_id }}"
    reason: before release 4
    until: "{{ '%Y-%m-%dT%H:%M:%SZ' | strftime(now().timestamp() + 14 * 24 * 3600, utc=true) }}"
  become: true
  become_user: postgres

- name: The release has proven itself
  cryoprotect.backup.backup_pin:
    backup: 20260301T140000Z-5f3a9c1e
    state: absent
  become: true
  become_user: postgres
"""

RETURN = r"""
msg:
  description: What was done.
  returned: always
  type: str
  sample: "20260301T140000Z-5f3a9c1e is pinned: before release 4"
backup_id:
  description: The backup.
  returned: success
  type: str
  sample: 20260301T140000Z-5f3a9c1e
source:
  description: What it is a backup of.
  returned: success
  type: str
  sample: main
pinned:
  description: Whether it is pinned now, or in check mode would be.
  returned: success
  type: bool
  sample: true
reason:
  description: Why. Empty when it is not pinned.
  returned: success
  type: str
  sample: before release 4
until:
  description: When the pin ends, as it was given. Null where it does not end by itself.
  returned: success
  type: str
  sample: "2026-03-15T14:00:00+00:00"
locations:
  description: For each location whether it knows of it. A prune that sees only one that does not deletes the backup.
  returned: success
  type: dict
  sample:
    local: {ok: true, error: null}
error:
  description: What went wrong.
  returned: on failure
  type: dict
  contains:
    id:
      description: What it is, a stable name for programs.
      type: str
      returned: always
      sample: no-such-backup
    message:
      description: What happened.
      type: str
      returned: always
      sample: no backups have an id like '2025'
    hint:
      description: What is still safe, and what to do next.
      type: str
      returned: always
      sample: "`cryobackup list` shows the ids."
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
    from collections.abc import Mapping

    from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.repository.catalog import (
        BackupRecord,
        Catalog,
    )


def work(task: Task) -> Outcome:
    from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.errors import EXIT_DONE, EXIT_PARTIAL
    from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.report.backups import location_state
    from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.repository.catalog import Catalog
    from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.repository.pins import (
        parse_until,
        pin,
        unpin,
    )
    from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.repository.repository import Repository

    options, dry_run = task.options, task.check_mode
    repository = Repository.open(task.config.repository.as_written())
    backup = chosen(Catalog.load(repository), options)
    if options["state"] == "present":
        until = None if options["until"] is None else parse_until(options["until"])
        result = pin(repository, backup, options["reason"], task.now(), until=until, dry_run=dry_run)
        end = f" until {result.until}" if result.until else ""
        msg = f"{result.backup_id} is pinned{end}: {result.reason}"
    else:
        result = unpin(repository, backup, task.now(), dry_run=dry_run)
        msg = f"{result.backup_id} is not pinned"
    for name, error in repository.lost.items():
        task.reporter.warn(f"location {name} does not know of it: {error.message}")
    fields = result.as_dict()
    fields["locations"] = {name: location_state(repository, name) for name in task.config.repository.locations}
    return Outcome(msg, fields.pop("changed"), fields, EXIT_PARTIAL if repository.lost else EXIT_DONE)


def chosen(catalog: Catalog, options: Mapping[str, t.Any]) -> BackupRecord:
    from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.errors import RepositoryError
    from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.repository.catalog import newest

    if options["backup"] is not None:
        return catalog.find(options["backup"])
    source = options["latest"]
    found = newest(catalog.of(source))
    if found is None:
        raise RepositoryError(f"there is no backup of {source} yet", hint="Take one.", id="no-such-backup")
    return found


def main() -> t.NoReturn:
    run(
        work,
        {
            **config_option(),
            **partial_option(),
            "backup": {"type": "str"},
            "latest": {"type": "str"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "reason": {"type": "str"},
            "until": {"type": "str"},
        },
        mutually_exclusive=[("backup", "latest")],
        required_one_of=[("backup", "latest")],
        required_if=[("state", "present", ["reason"])],
    )


if __name__ == "__main__":
    main()

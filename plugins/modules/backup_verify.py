#!/usr/bin/python
# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Verify that backups can be restored."""

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_verify
short_description: Verify that backups can be restored
version_added: 0.1.0
description:
  - Verifies backups at one of three levels, from a look at what is there to a restore in a sandbox.
  - Backups and clusters are never changed. That a backup was verified is noted in the repository, for the levels
    V(content) and V(restore); retention never removes the newest verified backup of a cluster.
extends_documentation_fragment:
  - cryoprotect.backup._attributes
  - cryoprotect.backup._config
  - cryoprotect.backup._partial
attributes:
  check_mode:
    support: full
    details:
      - In check mode the same is read, and nothing is noted in the repository. The level V(restore) makes no sandbox
        then and starts no PostgreSQL; V(content) takes its place.
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  backup:
    description: The id of one backup, or the beginning or the end of it.
    type: str
  latest:
    description: The newest backup of this cluster.
    type: str
  all:
    description: All backups. Objects that belong to none are found too.
    type: bool
    default: false
  level:
    description:
      - V(presence) looks whether every object is there and has the right size. It needs no key that can read.
      - V(content) reads, decrypts and checks every byte, in every location.
      - V(restore) restores the backup in a sandbox and starts PostgreSQL on it, with no network, no archiving and a
        socket of its own. It replays the WAL, checks all pages and indexes, and asks the questions of the
        configuration. Times are measured.
    type: str
    choices: [presence, content, restore]
    default: content
  locations:
    description: Look at these locations only. By default at all.
    type: list
    elements: str
  recover_to:
    description:
      - With O(level=restore), how far the WAL is replayed. V(immediate) until the backup is consistent, V(latest) to
        the end of the archived WAL.
    type: str
    choices: [immediate, latest]
    default: immediate
  work_directory:
    description: With O(level=restore), where the sandbox is made. By default below C(state_directory).
    type: path
  user:
    description:
      - With O(level=restore), who runs the PostgreSQL of the sandbox. By default whoever runs the module, and for root
        the owner of the living cluster, or C(postgres).
    type: str
  preload:
    description:
      - With O(level=restore), C(shared_preload_libraries) of the sandbox, for extensions that need it. What starts
        workers of its own then does so there, too.
    type: str
    default: ""
  workers:
    description: Number of threads. By default one for each processor, at most 8.
    type: int
  fail_on_damage:
    description:
      - Whether the task fails when a backup is damaged, or was restored and failed a check. What was found is in the
        result of the failed task.
      - With V(false) the task succeeds with a warning, and it is up to the playbook to look at RV(result).
    type: bool
    default: true
notes:
  - Without O(backup), O(latest) and O(all) the newest backup of every source is verified; of every cluster, for
    O(level=restore).
  - O(level=restore) needs the programs of the backup's major version of PostgreSQL on the host, and room for the
    cluster below C(state_directory).
seealso:
  - module: cryoprotect.backup.backup_info
  - module: cryoprotect.backup.backup_restore
author:
  - CryoProtect Backup contributors (@cryoprotect)
"""

EXAMPLES = r"""
- name: The newest backups are complete and readable
  cryoprotect.backup.backup_verify:
  become: true
  become_user: postgres

- name: The newest backup of a cluster can be restored
  cryoprotect.backup.backup_verify:
    latest: main
    level: restore
    recover_to: latest
  register: proof
  become: true
  become_user: postgres

- name: Is everything there, in the second location?
  cryoprotect.backup.backup_verify:
    all: true
    level: presence
    locations: [cloud]
  become: true
  become_user: postgres
"""

RETURN = r"""
msg:
  description: What was found, in a line.
  returned: always
  type: str
  sample: "1 backup verified (restore): ok"
result:
  description:
    - The worst of all.
    - V(ok).
    - V(damaged) when an object is missing or is not what was written.
    - V(failed) when a restored cluster did not start or failed a check.
    - V(incomplete) when a location did not answer, or lacks a backup.
    - V(unverified) when it could not be tried.
  returned: when something was verified
  type: str
  sample: ok
level:
  description: The level at which it was done.
  returned: when something was verified
  type: str
  sample: restore
seconds:
  description: How long it took.
  returned: when something was verified
  type: float
  sample: 31.4
backups:
  description: What was found, for each backup.
  returned: when something was verified
  type: list
  elements: dict
  contains:
    backup_id:
      description: The backup.
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
    result:
      description: As RV(result), for this backup.
      type: str
      returned: always
      sample: ok
    locations:
      description: State by location, V(ok), V(damaged), V(incomplete), V(absent) or V(lost).
      type: dict
      returned: always
      sample: {"local": "ok", "cloud": "ok"}
    figures:
      description: What was measured, such as C(bytes_checked), C(restore_seconds), C(recovery_seconds).
      type: dict
      returned: always
    checks:
      description: What a restored cluster was asked, each with C(name), C(ok) and C(detail).
      type: list
      elements: dict
      returned: always
    findings:
      description:
        - What is wrong, each with C(kind), C(severity), C(location), C(object), C(what) and the C(files) that cannot
          be restored because of it. The first 100 findings, and the first 100 files of each.
      type: list
      elements: dict
      returned: always
    findings_total:
      description: How many findings there are.
      type: int
      returned: always
      sample: 0
    error:
      description: Why the backup could not be verified.
      type: dict
      returned: always
locations:
  description: For each location its C(status), how many C(objects) and C(bytes) were looked at, and its C(error).
  returned: when something was verified
  type: dict
findings:
  description: What is wrong and belongs to none of RV(backups), as there; the first 100.
  returned: when something was verified
  type: list
  elements: dict
findings_total:
  description: How many of them there are.
  returned: when something was verified
  type: int
  sample: 0
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
  description: What the command line would have ended with. 0 is success, 3 done in part, 4 damage.
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
    from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.verify.result import VerifyReport

NOTICE = "notice"


def work(task: Task) -> Outcome:
    from pathlib import Path

    from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.verify.ladder import verify
    from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.verify.rehearsal import SandboxOptions
    from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.verify.result import CONTENT, RESTORE
    from ansible_collections.cryoprotect.backup.plugins.module_utils._engine.verify.subjects import Which

    options = task.options
    level = options["level"]
    report = verify(
        task.config,
        which=Which(options["backup"], options["latest"], options["all"]),
        level=CONTENT if task.check_mode and level == RESTORE else level,
        reporter=task.reporter,
        clock=task.now,
        locations=options["locations"],
        workers=options["workers"],
        sandbox=SandboxOptions(
            directory=Path(options["work_directory"]) if options["work_directory"] else None,
            to=options["recover_to"],
            user=options["user"],
            preload=options["preload"],
        ),
        record=not task.check_mode,
    )
    result = findings_capped(report.as_dict())
    result["backups"] = [findings_capped(backup) for backup in result["backups"]]
    return Outcome(words(report), changed=False, result=result, exit_code=report.exit_code)


def words(report: VerifyReport) -> str:
    """The result and the first things that are wrong."""
    count = f"{len(report.backups)} backup{'' if len(report.backups) == 1 else 's'} verified ({report.level})"
    checks = [check for backup in report.backups for check in backup.checks if check.ok is False]
    errors = [backup.error.message for backup in report.backups if backup.error is not None]
    wrong = [
        *(f"{finding.object}: {finding.what}" for finding in report.findings if finding.severity != NOTICE),
        *(f"{check.name}: {check.detail}" for check in checks),
        *errors,
    ]
    return ". ".join([f"{count}: {report.result}", *wrong[:3]])


def findings_capped(report: Fields) -> Fields:
    findings = report["findings"]
    shown = [{**finding, "files": capped(finding["files"])} for finding in capped(findings)]
    return {**report, "findings": shown, "findings_total": len(findings)}


def main() -> t.NoReturn:
    run(
        work,
        {
            **config_option(),
            **partial_option(),
            "backup": {"type": "str"},
            "latest": {"type": "str"},
            "all": {"type": "bool", "default": False},
            "level": {"type": "str", "choices": ["presence", "content", "restore"], "default": "content"},
            "locations": {"type": "list", "elements": "str"},
            "recover_to": {"type": "str", "choices": ["immediate", "latest"], "default": "immediate"},
            "work_directory": {"type": "path"},
            "user": {"type": "str"},
            "preload": {"type": "str", "default": ""},
            "workers": {"type": "int"},
            "fail_on_damage": {"type": "bool", "default": True},
        },
        mutually_exclusive=[("backup", "latest", "all")],
    )


if __name__ == "__main__":
    main()

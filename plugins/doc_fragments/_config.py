# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration that all modules read. PRIVATE to the collection."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  config:
    description:
      - The configuration file on the host, which names the repository, its locations, the directory of the keys
        and the clusters.
      - It is the same file that the C(cryobackup) command reads.
    type: path
    default: /etc/cryobackup/config.yml
requirements:
  - Python 3.11 or newer on the host
  - blake3
  - cryptography 47 or newer
  - google-crc32c
  - msgspec
  - numpy
  - psycopg2
  - PyYAML
  - zstandard
notes:
  - The required Python packages belong to the interpreter that runs the module, see C(ansible_python_interpreter).
  - Run the module as the user that makes the backups, usually C(postgres), with C(become) and C(become_user).
  - No secret is an option of this module. Keys are read from the directory that the configuration names; key files
    that others may read are refused.
"""

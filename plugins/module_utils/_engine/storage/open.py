# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From configuration to a location: the one table of kinds."""

from __future__ import annotations

import typing as t

from ..errors import ConfigError
from .base import Location

if t.TYPE_CHECKING:
    from ..config.locations import LocationConfig


def open_location(config: LocationConfig) -> Location:
    """No I/O. Raises ConfigError for a kind that this version does not have."""
    if config.type == "posix" and config.path is not None:
        from .posix import PosixLocation

        return PosixLocation(config.name, config.path, required=config.required)
    if config.type == "s3" and config.s3 is not None and config.s3.as_of is not None:
        from .s3.versions import PastS3Location

        return PastS3Location(config.name, config.where, config.s3, config.s3.as_of, required=config.required)
    if config.type == "s3" and config.s3 is not None and config.s3.first_versions:
        from .s3.versions import FirstS3Location

        return FirstS3Location(config.name, config.where, config.s3, required=config.required)
    if config.type == "s3" and config.s3 is not None:
        from .s3.location import S3Location

        return S3Location(config.name, config.where, config.s3, required=config.required)
    if config.type == "sftp" and config.sftp is not None:
        from .sftp import SftpLocation

        return SftpLocation(config.name, config.sftp, required=config.required)
    raise ConfigError(
        f"location {config.name!r}: type {config.type!r} is not supported by this version",
        hint="Supported: posix, s3, sftp.",
    )

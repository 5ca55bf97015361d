# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bucket, or a part of one, as a location: Amazon S3 and what speaks like it.

``client``       options become a client of botocore: credentials, TLS, addressing
``calls``        one request: retried, counted, its failure put into words
``errors``       what a failure means, and what its user can do
``location``     the protocol of ``storage.base`` in terms of requests
``writer``       one object in the making: a single put, or parts in the background

Another kind of object store would have its own client, calls and errors; location and writer show what it needs of
them: creation that never overwrites, the writer's token in the metadata, ranged reads, consistent lists.
"""

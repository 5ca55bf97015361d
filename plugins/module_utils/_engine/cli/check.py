# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``cryobackup check``: prove the set-up from end to end."""

from __future__ import annotations

import typing as t

from ._frame import Outcome

if t.TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from ..postgres.check import Finding
    from ._frame import Context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("cluster", metavar="CLUSTER", nargs="?", help="check this cluster only (default: all)")
    what.add_argument("--repository", action="store_true", help="no cluster: those of the configuration are elsewhere")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        default=60.0,
        help="how long to wait for a segment to be archived (default: %(default)g)",
    )


def run(args: argparse.Namespace, context: Context) -> Outcome:
    from ..errors import EXIT_DONE, EXIT_FAILED
    from ..postgres.check import check

    config = context.config
    clusters = [] if args.repository else list(config.clusters.values())
    if args.cluster:
        clusters = [config.cluster(args.cluster)]
    findings = check(config, clusters, now=context.now(), timeout=args.timeout, reporter=context.reporter)
    good = all(finding.ok for finding in findings)
    return Outcome(
        {
            "ok": good,
            "clusters": [cluster.name for cluster in clusters],
            "checks": [finding.as_dict() for finding in findings],
        },
        exit_code=EXIT_DONE if good else EXIT_FAILED,
        text=lambda: "\n".join(_lines(findings)),
    )


def _lines(findings: Sequence[Finding]) -> Iterator[str]:
    from ._text import counted

    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = "FAILED" if not finding.ok else "note" if finding.warning else "ok"
        yield f"{mark:<6}  {finding.name:<{width}}  {finding.detail}"
        if finding.hint:
            yield f"{'':<6}  {'':<{width}}  → {finding.hint}"
    failed = sum(not finding.ok for finding in findings)
    yield ""
    yield f"{failed} of {counted(len(findings), 'check')} failed" if failed else f"all {len(findings)} checks passed"

# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The limit on bytes per second."""

from __future__ import annotations

from cryobackup.postgres.throttle import Throttle


class Time:
    def __init__(self) -> None:
        self.now = 100.0
        self.slept = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


def test_no_limit_never_waits() -> None:
    time = Time()
    Throttle(None, time.sleep, lambda: time.now).take(1 << 40)
    assert time.slept == 0


def test_rate_holds_over_time() -> None:
    time = Time()
    throttle = Throttle(1000, time.sleep, lambda: time.now)
    for _unused in range(50):
        throttle.take(100)
    assert time.slept == 5.0


def test_idle_time_is_saved_for_half_a_second_only() -> None:
    time = Time()
    throttle = Throttle(1000, time.sleep, lambda: time.now)
    time.now += 3600
    throttle.take(500)
    assert time.slept == 0
    throttle.take(1000)
    assert time.slept == 1.0

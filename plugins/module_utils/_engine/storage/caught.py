# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An error on its way from the thread that met it to the one that waits for it."""

from __future__ import annotations

import types
import typing as t


class Caught:
    """Keeps whatever ends what is done inside, for the thread that waits for it and raises it there."""

    error: BaseException | None = None

    def __enter__(self) -> t.Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> bool:
        self.error = error
        return True

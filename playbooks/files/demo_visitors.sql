-- Copyright (c) 2026, CryoProtect Backup contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

-- Numbered rows, each one a transaction, until the server stops.
INSERT INTO visits DEFAULT VALUES
\watch 0.01

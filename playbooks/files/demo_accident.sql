-- Copyright (c) 2026, CryoProtect Backup contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

-- What is known to be there, and the last moment at which it was.
SELECT count(*) AS orders, sum(price) AS turnover FROM orders \gset
SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS moment \gset
DROP TABLE orders;
SELECT json_build_object(
    'orders', :orders,
    'turnover', :turnover,
    'moment', :'moment',
    'milliseconds', round(1000 * extract(epoch FROM clock_timestamp() - :'moment'::timestamptz), 1)
);

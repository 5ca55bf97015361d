-- Copyright (c) 2026, CryoProtect Backup contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

-- Finish the WAL segment that is being written, and wait until it has been archived.
SELECT pg_walfile_name(pg_switch_wal()) AS segment \gset
SELECT set_config('demo.segment', :'segment', false) \g /dev/null
DO $$
BEGIN
    FOR attempt IN 1 .. 600 LOOP
        PERFORM pg_stat_clear_snapshot();
        IF (SELECT last_archived_wal >= current_setting('demo.segment') FROM pg_stat_archiver) THEN
            RETURN;
        END IF;
        PERFORM pg_sleep(0.1);
    END LOOP;
    RAISE 'segment % was not archived within a minute', current_setting('demo.segment');
END
$$;

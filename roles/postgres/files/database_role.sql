-- Copyright (c) 2026, CryoProtect Backup contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

-- The role `:role` with all that backups need, and no more. Says what it had to do for that, or nothing.
SELECT format('CREATE ROLE %I LOGIN REPLICATION', :'role')
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec
SELECT format('ALTER ROLE %I LOGIN REPLICATION', rolname)
    FROM pg_roles WHERE rolname = :'role' AND NOT (rolcanlogin AND rolreplication) \gexec

SELECT format('GRANT %I TO %I', rolname, :'role')
    FROM pg_roles WHERE rolname IN ('pg_read_all_settings', 'pg_checkpoint') AND NOT pg_has_role(:'role', oid, 'MEMBER') \gexec

-- Up to PostgreSQL 14 they were called pg_start_backup and pg_stop_backup.
SELECT format('GRANT EXECUTE ON FUNCTION pg_catalog.%I(%s) TO %I', proname, pg_get_function_identity_arguments(oid), :'role')
    FROM pg_proc
    WHERE pronamespace = 'pg_catalog'::regnamespace AND NOT has_function_privilege(:'role', oid, 'EXECUTE')
        AND proname IN ('pg_backup_start', 'pg_backup_stop', 'pg_start_backup', 'pg_stop_backup',
                        'pg_control_system', 'pg_switch_wal', 'pg_create_restore_point') \gexec

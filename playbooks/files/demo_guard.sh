#!/bin/sh
# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Puts everything in order when the demonstration is over, or gone: stops its servers, removes its directory.
#
#   demo_guard.sh PID DIRECTORY PROGRAMS
#
# The playbook starts it by its text (sh -c), before there is a place for files. PID is that of
# ansible-playbook: when it was killed or interrupted, nobody else would do this. It is over when the file
# DIRECTORY/end appears. With a file DIRECTORY/keep only the servers are stopped.
set -u
playbook=$1 directory=$2 programs=$3
exec </dev/null >>"$directory/guard.log" 2>&1

while [ -d "/proc/$playbook" ] && [ -d "$directory" ] && [ ! -e "$directory/end" ]; do
    sleep 0.5
done

# A task that was interrupted may still be at work: look again until nothing is left.
attempts=60
while [ -d "$directory" ] && [ "$attempts" -gt 0 ]; do
    for pid_file in "$directory"/*/postmaster.pid; do
        # What uses a server ends with it.
        [ ! -e "$pid_file" ] || "$programs/pg_ctl" --pgdata="${pid_file%/*}" --mode=immediate --wait stop
    done
    if [ -e "$directory/keep" ]; then
        rm -f "$directory/end" "$directory/keep"
        break
    fi
    rm -rf "$directory" || sleep 1
    attempts=$((attempts - 1))
done

#!/usr/bin/env bash
# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# elapse.sh UNIT [RESULT]: let a timer elapse now, wait until the job that it starts has ended, and put the timer back.
# Fails when the job does; or when it has another result, such as exec-condition for one that is to be skipped.
set -euo pipefail
unit=$1 wanted=${2-success}
drop_in=/run/systemd/system/$unit.timer.d

show() { systemctl show --value --property="$1" "$unit.service"; }
restart() { systemctl daemon-reload && systemctl restart "$unit.timer"; }
restore() { rm -rf "$drop_in" && restart; }

before=$(show InvocationID)
mkdir -p "$drop_in"
trap restore EXIT
printf '[Timer]\nOnCalendar=\nOnActiveSec=0\nRandomizedDelaySec=0\nAccuracySec=1us\n' >"$drop_in/now.conf"
restart
until [ "$(show InvocationID)" != "$before" ] && [[ $(show ActiveState) =~ inactive|failed ]]; do
    [ $SECONDS -lt 600 ] || { echo "$unit has not ended" && exit 1; }
    sleep 0.1
done
[ "$(show Result)" = "$wanted" ] || { journalctl --no-pager --unit="$unit.service" --lines=40 --output=cat && exit 1; }

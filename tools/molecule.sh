#!/usr/bin/env bash
# Run the scenarios of extensions/molecule on hosts of the laboratory. What they print goes to tests/output/molecule.log,
# what the hosts wrote to tests/output/hosts; the ends of both are shown when something failed.
#
#   tools/molecule.sh                 all scenarios
#   tools/molecule.sh install ...     these
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
output=tests/output
export NO_COLOR=1 ANSIBLE_NOCOLOR=1

rm -rf "$output/hosts" "$output/molecule.log"
mkdir -p "$output"
if [ $# -eq 0 ]; then
    scenarios=(--all)
else
    scenarios=("${@/#/--scenario-name=}")
fi
began=$SECONDS
if tools/hosts.sh molecule test "${scenarios[@]}" >"$output/molecule.log" 2>&1; then
    sed -n '/^DETAILS/,$p' "$output/molecule.log"
    printf 'ok      %-14s %3d s\n' molecule $((SECONDS - began))
    exit 0
fi
tail --lines=150 "$output/molecule.log"
for log in "$output"/hosts/*.log; do
    [ ! -e "$log" ] || { printf '\n%s\n' "$log:" && tail --lines=60 "$log"; }
done
printf 'FAILED  %-14s %3d s\n' molecule $((SECONDS - began))
exit 1

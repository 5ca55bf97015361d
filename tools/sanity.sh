#!/usr/bin/env bash
# Run ansible-test sanity on a copy of the checkout. Arguments go to ansible-test, for example:
# tools/sanity.sh --test import plugins/module_utils/_engine/errors.py
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
tools/stage.sh "$stage"
cd "$stage/ansible_collections/cryoprotect/backup"
git init --quiet  # how ansible-test finds out which files belong to the collection

python=$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
sanity() {
    ansible-test sanity --python "$python" --color no --truncate 0 "$@"
}

# ansible-test makes an environment for each of its tests, once. What pip says there is of interest
# only when it fails.
log=$stage/prime.log
prime() { sanity --prime-venvs "$@" >"$log" 2>&1; }

# It does so with a script that it downloads first. Where only the package index can be reached,
# Python's own copy of pip does the same. Nothing is replaced where the download works.
stand_in() {
    local script
    script=$(sed -nE 's/^The bootstrap script can be manually downloaded and saved to: //p' "$log" | head -n 1)
    [ -n "$script" ] || return 1
    cat >"$script" <<'PYTHON'
import subprocess, sys
arguments = [a for a in sys.argv[1:] if a not in ("--no-setuptools", "--no-wheel")]
subprocess.run([sys.executable, "-m", "ensurepip"], check=True, stdout=subprocess.DEVNULL)
raise SystemExit(subprocess.run([sys.executable, "-m", "pip", "install", *arguments]).returncode)
PYTHON
}

if ! prime "$@" && ! { stand_in && prime "$@"; }; then
    cat "$log" >&2
    exit 1
fi
sanity "$@"

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

# ansible-test makes its environments with a script that it downloads once. Where only the package
# index can be reached, pip's own copy inside Python does the same. Nothing is replaced where the
# download works.
log=$stage/prime.log
if ! sanity --test import --prime-venvs >"$log" 2>&1; then
    script=$(sed -nE 's/^The bootstrap script can be manually downloaded and saved to: //p' "$log" | head -n 1)
    if [ -z "$script" ]; then
        cat "$log" >&2
        exit 1
    fi
    mkdir -p "$(dirname "$script")"
    cat >"$script" <<'PYTHON'
import subprocess, sys
arguments = [a for a in sys.argv[1:] if a not in ("--no-setuptools", "--no-wheel")]
subprocess.run([sys.executable, "-m", "ensurepip"], check=True, stdout=subprocess.DEVNULL)
raise SystemExit(subprocess.run([sys.executable, "-m", "pip", "install", *arguments]).returncode)
PYTHON
fi
sanity "$@"

#!/usr/bin/env bash
# Make .venv from the hash-pinned lock, with the engine importable as `cryobackup`, and the command
# .venv/bin/cryobackup. Does nothing when the lock and the interpreter are those it was made from.
set -euo pipefail
umask 022  # the system user that runs PostgreSQL executes what is made here
cd "$(dirname "$0")/.."

lock=requirements-dev.txt
launcher=roles/runtime/files/cryobackup
stamp=.venv/.made-from

# Debian's own python3 comes first: the system user that runs PostgreSQL can execute it, which is
# not so of an interpreter in somebody's home directory.
find_python() {
    local candidate
    for candidate in /usr/bin/python3 python3.13 python3.12 python3.11; do
        candidate=$(command -v "$candidate") || continue
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

if ! python=$(find_python); then
    tools/install-packages.sh python3 python3-venv
    python=$(find_python) || {
        echo "Python 3.11, 3.12 or 3.13 is needed; $(/usr/bin/python3 --version) is what there is." >&2
        exit 1
    }
fi

identity="$("$python" -c 'import sys; print(sys.executable, sys.version.split()[0])') $(pwd -P) $(cat "$0" "$lock" "$launcher" | sha256sum)"
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$identity" ]; then
    exit 0
fi

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    tools/install-packages.sh python3-venv
fi
# Packages come over TLS; a minimal installation has no certificates to check it with.
[ -e /etc/ssl/certs/ca-certificates.crt ] || tools/install-packages.sh ca-certificates

echo "Making .venv with $python" >&2
# An environment of another interpreter or another place is of no use; one with only other
# packages in it is brought up to date.
if [ -e .venv ] && ! .venv/bin/python -c \
    'import os, sys; sys.exit(sys.prefix != os.path.realpath(".venv") or sys.version_info[:3] != tuple(map(int, sys.argv[1].split("."))))' \
    "$("$python" -c 'import platform; print(platform.python_version())')" 2>/dev/null; then
    rm -rf .venv
fi
[ -e .venv ] || "$python" -m venv .venv
# Every package is a wheel whose hash is in the lock: nothing is compiled and no code runs here.
.venv/bin/python -m pip --disable-pip-version-check --no-input --quiet \
    install --require-hashes --only-binary :all: --requirement "$lock"
.venv/bin/python -m pip --disable-pip-version-check check >&2

site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
ln -sfn ../../../../plugins/module_utils/_engine "$site/cryobackup"
# Ansible looks for collections among Python's packages too: with this, every tool of the environment
# finds cryoprotect.backup in the checkout, from whatever directory it is started.
mkdir -p "$site/ansible_collections/cryoprotect"
ln -sfn ../../../../../.. "$site/ansible_collections/cryoprotect/backup"

install -m 755 "$launcher" .venv/bin/cryobackup

echo "$identity" >"$stamp"

#!/usr/bin/env bash
# Make .venv from the hash-pinned lock, with the engine importable as `cryobackup`, and the command
# .venv/bin/cryobackup. Does nothing when the lock and the interpreter are those it was made from.
set -euo pipefail
umask 022  # the system user that runs PostgreSQL executes what is made here
cd "$(dirname "$0")/.."

lock=requirements-dev.txt
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

identity="$("$python" -c 'import sys; print(sys.executable, sys.version.split()[0])') $(pwd -P) $(cat "$0" "$lock" | sha256sum)"
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

# No entry point of a packaging library: those import the library before the command, and starting
# up has a budget, which is also why the shell starts no other program unless it has to. The
# interpreter is found beside the script, so that the checkout may be seen at another path (see
# tools/reachable.sh). -P and -s: neither the directory of the script nor the user's own packages can
# put a module in front of ours. -S: Python's site module takes a third of the start, and all that is
# wanted of it is one entry of the path. Whatever is broken, a recovery must not take it for the end of the
# archive, which is what Python's own exit code of 1 would mean to it.
cat >.venv/bin/cryobackup <<'SCRIPT'
#!/bin/sh
'''':
self=$0
[ ! -L "$0" ] || self=$(readlink -f -- "$0")
exec "${self%/*}/python3" -sSP "$0" "$@"
'''
import sys

sys.path.append("{}/lib/python{}.{}/site-packages".format(sys.executable.rpartition("/bin/")[0], *sys.version_info))
try:
    from cryobackup.cli import main

    code = main()
except Exception:
    if "wal-get" not in sys.argv:
        raise
    sys.excepthook(*sys.exc_info())
    code = 200
sys.exit(code)
SCRIPT
chmod 755 .venv/bin/cryobackup

echo "$identity" >"$stamp"

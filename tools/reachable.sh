#!/usr/bin/env bash
# Run a command in this checkout, at a path that every user of the machine can reach.
#
# PostgreSQL refuses to run as root, so tests and demo run it, and with it the engine, as the system
# user postgres. In a checkout below a private directory (root's home is one) that user could not
# read the engine. Then, and only then, the command runs with the checkout mounted a second time,
# in a mount namespace of its own, which is gone with the command.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$(pwd -P)

others_may() { # others_may RIGHTS PATH: has everybody these rights (4 read, 1 enter) on it?
    (((0$(stat --format=%a "$2") & $1) == $1))
}

if [ "$(id -u)" -ne 0 ]; then
    exec "$@"
fi

if ! others_may 5 plugins; then
    echo "This checkout was made with a umask that hides its files from other users, and PostgreSQL" >&2
    echo "does not run as root. Make it readable (chmod -R go+rX $checkout) and run this again." >&2
    exit 1
fi
if ! others_may 1 .; then
    echo "Letting other users enter $checkout (chmod go+x): PostgreSQL does not run as root." >&2
    chmod go+x .
fi

directory=$checkout
while others_may 1 "$directory" && [ "$directory" != / ]; do
    directory=$(dirname "$directory")
done
if [ "$directory" = / ]; then
    exec "$@"
fi

if ! unshare --mount true; then
    echo "Other users cannot enter $directory, PostgreSQL does not run as root, and this machine does" >&2
    echo "not allow mount namespaces. Use a checkout elsewhere, for example below /srv." >&2
    exit 1
fi
place=/mnt
case $checkout/ in /mnt/*) place=/media ;; esac
# shellcheck disable=SC2016  # the variables are those of the inner shell
exec unshare --mount --propagation private bash -euc '
    mount -t tmpfs -o mode=755 cryobackup-checkout "$1"
    mkdir "$1/cryobackup"
    mount --rbind . "$1/cryobackup"
    cd "$1/cryobackup"
    shift
    exec "$@"
' reachable "$place" "$@"

#!/usr/bin/env bash
# Resolve requirements into the two hash-pinned lock files, for Python 3.11 to 3.13 on every
# platform at once. Extra arguments go to the resolver, for example: --upgrade-package cryptography
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
/usr/bin/python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check uv

# --no-config and no pip settings: the hashes must be those the index publishes, not those of
# wheels that happen to lie on this machine.
resolve() {
    "$work/venv/bin/uv" --no-config --quiet pip compile "$1" --output-file "$2" \
        --universal --python-version 3.11 --fork-strategy fewest --python /usr/bin/python3 \
        --generate-hashes --no-emit-index-url --no-emit-find-links \
        --custom-compile-command "make lock" "${@:3}"
}

resolve roles/runtime/files/requirements.in roles/runtime/files/requirements.txt "$@"
# The development environment tests exactly what a database host runs.
resolve requirements-dev.in requirements-dev.txt --constraints roles/runtime/files/requirements.txt "$@"

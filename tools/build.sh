#!/usr/bin/env bash
# Build the collection's tarball into DIRECTORY, from the files that belong to the checkout only.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p "$1"
output=$(cd "$1" && pwd)
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
tools/stage.sh "$stage"
.venv/bin/ansible-galaxy collection build --force --output-path "$output" \
    "$stage/ansible_collections/cryoprotect/backup"

#!/usr/bin/env bash
# Copy the checkout (tracked files and new ones, not ignored ones) to
# DIRECTORY/ansible_collections/cryoprotect/backup: where Ansible's tools expect a collection.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$1/ansible_collections/cryoprotect/backup
mkdir -p "$target"
# A file that is deleted but not yet committed is still listed: leave it out.
git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do
        [ ! -e "$file" ] && [ ! -L "$file" ] || printf '%s\0' "$file"
    done |
    tar --create --null --no-recursion --files-from=- | tar --extract --directory="$target"

#!/usr/bin/env bash
# Run a command in the laboratory of whole hosts: network, mounts and processes are its own, and gone with the
# command. There molecule can make the hosts of extensions/molecule/inventory. For example, to look around:
#
#   tools/hosts.sh bash
#   molecule create && molecule converge --scenario-name install && ssh -F tests/output/ssh_config single
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH
# What molecule knows of the hosts is to be gone with them, also when it is killed.
export MOLECULE_EPHEMERAL_DIRECTORY=/run/cryobackup-hosts/molecule
exec python -m tests.lab.hosts run "$@"

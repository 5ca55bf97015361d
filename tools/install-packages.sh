#!/usr/bin/env bash
# Install the Debian packages that are missing; start nothing when all are there.
#
#   tools/install-packages.sh PACKAGE...        these packages
#   tools/install-packages.sh -f FILE           those listed in FILE, one a line, # begins a comment
set -euo pipefail

if [ "${1:-}" = -f ]; then
    mapfile -t wanted < <(sed -E 's/#.*//; s/[[:space:]]+//g; /^$/d' "$2")
else
    wanted=("$@")
fi

missing=()
for package in "${wanted[@]}"; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) || status=absent
    [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" -eq 0 ]; then
    root=()
elif sudo --non-interactive true 2>/dev/null; then
    root=(sudo --non-interactive)
else
    echo "Missing packages: ${missing[*]}" >&2
    echo "Install them as root (apt-get install ${missing[*]}) and run this again." >&2
    exit 1
fi

apt() {
    # Debian's frontends ask questions unless told not to, and wait for another apt for ever.
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get --quiet=2 --yes \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@"
}

# Debian's postgresql makes and starts a cluster "main" when it is first installed. Nobody asked us
# for a running server, so the switch for it is off while we install, and then as it was before.
createcluster=/etc/postgresql-common/createcluster.conf
keep_without_cluster() {
    apt install --no-install-recommends postgresql-common
    saved=$(mktemp)
    "${root[@]}" cp --preserve "$createcluster" "$saved"
    trap '"${root[@]}" cp --preserve "$saved" "$createcluster"; "${root[@]}" rm -f "$saved"' EXIT
    echo 'create_main_cluster = false' | "${root[@]}" tee --append "$createcluster" >/dev/null
}

# The tests start a server of their own; the machine's is nobody's wish. Debian's sshd honours this file, at
# installation and at every boot. It stays; remove it to have one.
keep_sshd_off() {
    "${root[@]}" mkdir -p /etc/ssh
    "${root[@]}" touch /etc/ssh/sshd_not_to_be_run
}

echo "Installing: ${missing[*]}" >&2
apt update
for package in "${missing[@]}"; do
    case $package in
        openssh-server) keep_sshd_off ;;
        postgresql | postgresql-[0-9]*) [ -n "${saved:-}" ] || keep_without_cluster ;;
    esac
done
apt install --no-install-recommends "${missing[@]}" >&2

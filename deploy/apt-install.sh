#!/bin/sh
# Install Debian packages without a question asked and without letting them start a system-wide
# server: policy-rc.d refuses service starts (invoke-rc.d(8)) for as long as this runs.
set -eu

# One at a time: two runs of this script would each find dpkg locked, and remove the other's policy.
exec 9<"$0"
flock 9

policy="${POLICY_RC_D:-/usr/sbin/policy-rc.d}"
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
# Something else of the machine, such as unattended-upgrades, may be installing just now.
apt-get -qq -o DPkg::Lock::Timeout=600 install --yes --no-install-recommends "$@"

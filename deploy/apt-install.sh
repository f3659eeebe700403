#!/bin/sh
# Install Debian packages without a question asked, without removing any package, and without letting
# them start a system-wide server: policy-rc.d refuses service starts (invoke-rc.d(8)) for as long as
# this runs. `--plan` only prints what apt would do, and `--as-planned` comes right after it. Ends with
# 3 where apt would remove a package.
set -eu

mode=
case "$1" in --*) mode="$1" && shift ;; esac

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

export DEBIAN_FRONTEND=noninteractive LC_ALL=C
# Something else of the machine, such as unattended-upgrades, may be installing just now, or have
# changed what a simulation went by.
apt_install() {
    apt-get -qq -o DPkg::Lock::Timeout=600 -o APT::Get::AutomaticRemove=false \
        --no-install-recommends "$@"
}

[ "$mode" = --as-planned ] || apt-get -qq update
changes="$(apt_install --simulate install "$@")"
removed="$(echo "$changes" | awk '/^(Remv|Purg) / { printf "%s%s", comma, $2; comma = ", " }')"
if [ -n "$removed" ]; then
    echo "to install $* apt would remove $removed" >&2
    exit 3
fi
if [ "$mode" = --plan ]; then
    echo "$changes"
else
    apt_install --yes --no-remove install "$@"
fi

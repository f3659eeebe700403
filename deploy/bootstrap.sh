#!/bin/sh
# Make .venv with the pinned dependencies and the project in it; does nothing when it's up to date.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "✗ $*" >&2
    exit 1
}

find_python() {
    seen=
    for candidate in ${PYTHON:-python3.11 python3 python3.12 python3.13 python3.14}; do
        version="$("$candidate" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)" ||
            continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "$candidate"
            return
        fi
        seen="$seen; $candidate is $version"
    done
    remedy="install it, or set PYTHON to where it is"
    [ "$(uname)" != Darwin ] || remedy="run \`brew install python@3.11\`"
    [ -z "${PYTHON:-}" ] || [ -n "$seen" ] || seen="; PYTHON=$PYTHON is none"
    fail "Python 3.11 or later is needed$seen: $remedy"
}

# Debian keeps what `python -m venv` needs in a package of its own.
ensure_venv_module() {
    "$python" -c 'import ensurepip, venv' 2>/dev/null && return
    package="python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
    remedy="run \`sudo apt-get install $package\`, then start again"
    command -v apt-get >/dev/null || fail "$python has no venv module: install it, or set PYTHON"
    if [ "$(id -u)" = 0 ]; then
        as_root=
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        as_root="sudo -n"
    else
        fail "$python has no venv module, and installing it needs root: $remedy"
    fi
    echo "… installing $package with apt (once)"
    said="$($as_root sh deploy/apt-install.sh "$package" 2>&1)" || {
        echo "$said" | tail -n 3 >&2
        fail "apt could not install $package: $remedy"
    }
}

stamp=.venv/installed
here="$(pwd -P)"
if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$here" ] && .venv/bin/python -c '' 2>/dev/null &&
    [ -z "$(find requirements.lock pyproject.toml -newer "$stamp")" ]; then
    exit 0
fi

began="$(date +%s)"
# Two that start at once would each remove what the other installs. macOS has no flock.
if command -v flock >/dev/null; then
    exec 9<deploy/bootstrap.sh
    flock -n 9 || {
        echo "… another make is installing: waiting for it"
        flock 9
        exec sh deploy/bootstrap.sh
    }
fi

python="$(find_python)"
ensure_venv_module
# Measured: 820 MB are left of it, and pip needs room to unpack what it fetched.
needed_mb=1100
free_mb="$(df -Pk . | awk 'NR == 2 { print int($4 / 1024) }')"
if [ ! -e .venv/bin/python ] && [ "$free_mb" -lt "$needed_mb" ]; then
    fail ".venv needs $needed_mb MB of disk and $here has $free_mb MB free: make room, or move the project"
fi

# One that was moved holds the old path in its scripts; one that has no pip was never finished.
if [ -e "$stamp" ] && [ "$(cat "$stamp")" != "$here" ]; then
    rm -rf .venv
fi
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    echo "… making .venv with $("$python" --version)"
    rm -rf .venv 2>/dev/null || fail "can't replace $here/.venv: remove it, then start again"
    said="$("$python" -m venv .venv 2>&1)" ||
        fail "can't make $here/.venv ($(echo "$said" | tail -n 1)): mend that, then start again"
fi
packages="$(grep -c '^[a-zA-Z0-9]' requirements.lock)"
site="$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
log=.venv/install.log

why_pip_failed() {
    if grep -q 'No space left' "$log"; then
        echo "the disk is full: make room (.venv takes 820 MB), then start again"
    elif grep -qE 'Retrying \(Retry|ConnectionError|NewConnection|name resolution|Read timed out|ProxyError|SSLError' "$log"; then
        echo "the package index can't be reached: check network and proxy, or set PIP_INDEX_URL; see $here/$log"
    else
        echo "$( (grep -iE '^ *error:' "$log" || cat "$log") | tail -n 1): see $here/$log, mend that, then start again"
    fi
}
pip_install() {
    rm -f .venv/pip.done
    # In the foreground, so that Ctrl-C ends pip, too; a pipe has no status but its last command's.
    { .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
        --root-user-action=ignore "$@" 2>&1 && : >.venv/pip.done || :; } |
        .venv/bin/python deploy/pip_progress.py "$log" "$packages" "$site"
    [ -e .venv/pip.done ] || fail "pip could not install the dependencies: $(why_pip_failed)"
}
echo "… installing $packages pinned packages: a minute or two, this once"
rm -f "$stamp"
pip_install --require-hashes -r requirements.lock
pip_install --no-deps --no-build-isolation -e .
echo "$here" >"$stamp"
echo "✓ .venv is ready after $(($(date +%s) - began)) s; later starts leave this out"

#!/bin/sh
# Make .venv with the pinned dependencies and the project in it; does nothing when it's up to date.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "✗ $*" >&2
    exit 1
}

find_python() {
    for candidate in ${PYTHON:-} python3.11 python3 python3.12 python3.13; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    if [ "$(uname)" = Darwin ]; then
        fail "Python 3.11 or later is needed: run \`brew install python@3.11\`"
    fi
    fail "Python 3.11 or later is needed: install it, or set PYTHON to where it is"
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

python="$(find_python)"
ensure_venv_module
pip_install() {
    .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
        --root-user-action=ignore "$@" >.venv/install.log 2>&1 || {
        grep '^ERROR' .venv/install.log >&2 || tail -n 5 .venv/install.log >&2
        fail "pip could not install the dependencies: see .venv/install.log, then start again"
    }
}

# One that was moved holds the old path in its scripts; one that has no pip was never finished.
if [ -e "$stamp" ] && [ "$(cat "$stamp")" != "$here" ]; then
    rm -rf .venv
fi
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    echo "… making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv
fi
echo "… installing the pinned dependencies"
rm -f "$stamp"
pip_install --require-hashes -r requirements.lock
pip_install --no-deps --no-build-isolation -e .
echo "$here" >"$stamp"
echo "✓ .venv is ready"

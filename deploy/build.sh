#!/bin/sh
# Builds the contents of the image from a checkout: `deploy/build.sh FOLDER` does both steps,
# `deploy/build.sh FOLDER packages` and `… code` one. The first needs only requirements.lock,
# launcher/bootstrap.py and this file, so that a change of the code installs nothing again.
#
# FOLDER/app has the code and the compiled contract, FOLDER/venv the packages that it needs to run.
# No compiler, no installer, no test tools, no embedded servers.
set -eu
target=$1
step=${2:-all}
source=$(cd "$(dirname "$0")/.." && pwd)
cd "$source"

# An environment with the packages of a part of the lock, every package by its hash.
install() {
    environment=$1
    shift
    [ -d "$environment" ] || python3 -m venv --without-pip "$environment"
    for part in "$@"; do
        python3 launcher/bootstrap.py "$part" > "build/$part.lock"
        python3 -m pip --python "$environment/bin/python" install --quiet --no-cache-dir \
            --disable-pip-version-check --no-deps --require-hashes --requirement "build/$part.lock"
    done
}

if [ "$step" != code ]; then
    mkdir -p build "$target"
    install "$target/venv" image
    # This one compiles the contract and stays behind.
    install build/compiler image compiler
    "$target/venv/bin/python" -m compileall -q "$target/venv/lib"
fi

if [ "$step" != packages ]; then
    PYTHONPATH="$source" build/compiler/bin/python -c \
        "from launcher import protos; protos.compile_contract()"
    mkdir -p "$target/app/build"
    for each in mesh auth_svc booking_svc stock_svc payment_svc limit_svc envoy deploy \
        build/stubs build/*.binpb build/*.sha256; do
        rm -rf "$target/app/$each"
        cp -R "$each" "$target/app/$each"
    done
    find "$target/app" -name __pycache__ -type d -prune -exec rm -rf {} +
    chmod 755 "$target/app/deploy/gateway.sh"
    "$target/venv/bin/python" -m compileall -q "$target/app"
fi

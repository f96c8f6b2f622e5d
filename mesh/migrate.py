"""Migrates services' databases: `python -m mesh.migrate stock_svc`. Deployments run it before
the services start; `make up` migrates by itself. Safe to repeat and to run concurrently."""

import argparse
import importlib
import sys

from mesh.db.migrations import migrate
from mesh.settings import SERVICES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mesh.migrate", description=__doc__)
    parser.add_argument("services", nargs="+", choices=SERVICES, metavar="SERVICE")
    for service in parser.parse_args().services:
        try:
            url = importlib.import_module(f"{service}.settings").Settings().database_url
        except ValueError as error:
            raise SystemExit(f"{service} cannot be migrated: {error}") from None
        migrate(service, url)
        print(f"{service}: the schema is up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())

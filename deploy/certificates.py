"""Certificates of a small deployment: `python -m deploy.certificates deploy/certificates`.

The same as `make up` makes for itself. A company has its own authority: what it must put
into a certificate is spiffe://boxoffice/<process> and the DNS name, e.g. stock-svc.
"""

import sys
from pathlib import Path

from launcher import certificates


def main() -> int:
    folder = Path(sys.argv[1])
    certificates.create(folder)
    print(f"Written: {folder}. The keys open the mesh: keep them apart from the code.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

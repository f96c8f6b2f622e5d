"""Creates a CA and certificates for a small deployment, as `make up` does:
`python -m deploy.certificates deploy/certificates`.

Certificates of another CA need the URI spiffe://boxoffice/<process> and a DNS name, e.g. stock-svc.
"""

import sys
from pathlib import Path

from launcher import certificates


def main() -> int:
    folder = Path(sys.argv[1])
    certificates.create(folder)
    print(f"Wrote {folder}. Keep its private keys secret; do not commit them.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

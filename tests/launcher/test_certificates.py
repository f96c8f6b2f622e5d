import ssl
import stat
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from launcher import certificates

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def create(folder: Path, *, at: datetime = NOW) -> None:
    certificates.create(folder, clock=lambda: at)


def load(folder: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", certificates.NAMES)
def test_each_process_has_a_certificate_of_the_authority(tmp_path: Path, name: str) -> None:
    create(tmp_path)
    authority, certificate = load(tmp_path, "ca"), load(tmp_path, name)
    certificate.verify_directly_issued_by(authority)
    extensions = certificate.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        f"spiffe://boxoffice/{name}"
    ]
    assert set(names.get_values_for_type(x509.DNSName)) == {name.replace("_", "-"), "localhost"}
    assert set(names.get_values_for_type(x509.IPAddress)) == {
        ip_address("127.0.0.1"),
        ip_address("::1"),
    }
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_two_processes_complete_a_mutual_tls_handshake(tmp_path: Path) -> None:
    certificates.create(tmp_path)
    server_side, client_side = (_context(tmp_path, name) for name in ("stock_svc", "booking_svc"))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    client = client_side.wrap_bio(to_client, to_server, server_hostname="stock-svc")
    for _ in range(3):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    peer = server.getpeercert()
    assert peer is not None
    assert ("URI", "spiffe://boxoffice/booking_svc") in peer["subjectAltName"]


def _context(folder: Path, name: str) -> ssl.SSLContext:
    purpose = ssl.Purpose.CLIENT_AUTH if name == "stock_svc" else ssl.Purpose.SERVER_AUTH
    context = ssl.create_default_context(purpose, cafile=folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    # OpenSSL's strictest mode, which is stricter than Envoy.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


def test_only_the_owner_can_read_keys(tmp_path: Path) -> None:
    create(tmp_path)
    assert {stat.S_IMODE(key.stat().st_mode) for key in tmp_path.glob("*.key")} == {0o600}


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    create(tmp_path)
    before = contents(tmp_path)
    create(tmp_path, at=NOW + timedelta(days=300))
    assert contents(tmp_path) == before


def test_certificates_that_expire_within_30_days_are_renewed_by_the_same_authority(
    tmp_path: Path,
) -> None:
    create(tmp_path)
    before = contents(tmp_path)
    later = NOW + timedelta(days=336)
    create(tmp_path, at=later)
    after = contents(tmp_path)
    assert after["ca.pem"] == before["ca.pem"]
    assert after["stock_svc.pem"] != before["stock_svc.pem"]
    assert load(tmp_path, "stock_svc").not_valid_after_utc == later + timedelta(days=365)


def test_an_authority_that_expires_soon_is_replaced_with_all_certificates(tmp_path: Path) -> None:
    create(tmp_path)
    before = contents(tmp_path)
    create(tmp_path, at=NOW + timedelta(days=3640))
    after = contents(tmp_path)
    assert all(after[name] != before[name] for name in before)
    load(tmp_path, "gateway").verify_directly_issued_by(load(tmp_path, "ca"))


@pytest.mark.parametrize("damage", ["missing", "broken", "of another", "of another authority"])
def test_a_damaged_certificate_is_replaced(tmp_path: Path, damage: str) -> None:
    create(tmp_path)
    before = contents(tmp_path)
    target = tmp_path / "stock_svc.pem"
    if damage == "missing":
        (tmp_path / "stock_svc.key").unlink()
    elif damage == "broken":
        target.write_text("not a certificate")
    elif damage == "of another":
        target.write_bytes(before["auth_svc.pem"])
        (tmp_path / "stock_svc.key").write_bytes(before["auth_svc.key"])
    else:
        create(tmp_path / "other")
        for name in ("stock_svc.pem", "stock_svc.key"):
            (tmp_path / name).write_bytes((tmp_path / "other" / name).read_bytes())
    create(tmp_path)
    load(tmp_path, "stock_svc").verify_directly_issued_by(load(tmp_path, "ca"))
    assert (tmp_path / "auth_svc.pem").read_bytes() == before["auth_svc.pem"]
    names = load(tmp_path, "stock_svc").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert "stock-svc" in names.value.get_values_for_type(x509.DNSName)

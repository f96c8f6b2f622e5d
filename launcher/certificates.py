"""Creates a development certificate authority and a certificate for each process.

The certificates' SPIFFE URIs identify processes. Other deployments use their own authority.
"""

from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from launcher import files
from mesh.clock import Clock, system_clock
from mesh.settings import LIMIT_SERVICE, SERVICES

GATEWAY = "gateway"
OPERATOR = "operator"
"""The certificate for health checks and for `buf curl` on this machine."""

NAMES = (*SERVICES, LIMIT_SERVICE, GATEWAY, OPERATOR)

_AUTHORITY_LIFETIME = timedelta(days=3650)
_LIFETIME = timedelta(days=365)
_RENEW_BEFORE = timedelta(days=30)
# Backdates certificates, so that machines whose clocks are slightly behind accept them.
_SKEW = timedelta(minutes=5)


def create(folder: Path, *, clock: Clock = system_clock) -> None:
    """Writes ca.pem, ca.key and <name>.pem, <name>.key; keeps those valid for 30 more days."""
    now = clock()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    authority = _load(folder, "ca")
    if authority is None or not _lasts(authority[0], now):
        authority = _new_authority(now)
        _store(folder, "ca", *authority)
    for name in NAMES:
        current = _load(folder, name)
        if current is None or not _is_good(current[0], name, authority[0], now):
            _store(folder, name, *_new_certificate(name, *authority, now))


def spiffe_id(name: str) -> str:
    return f"spiffe://boxoffice/{name}"


def _new_authority(now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject("Boxoffice development CA")
    certificate = (
        _builder(subject, subject, key.public_key(), now, _AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def _new_certificate(
    name: str,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    now: datetime,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    # Not beyond the authority's lifetime: the chain would break before this certificate is renewed.
    lifetime = min(_LIFETIME, authority.not_valid_after_utc - now)
    certificate = (
        _builder(_subject(name), authority.subject, key.public_key(), now, lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(
            # Each process is both server and client.
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .add_extension(_alternative_names(name), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .sign(authority_key, hashes.SHA256())
    )
    return certificate, key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative_names(name: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(
        [
            x509.UniformResourceIdentifier(spiffe_id(name)),
            # Host names must not contain underscores, so clients verify this form.
            x509.DNSName(name.replace("_", "-")),
            x509.DNSName("localhost"),
            x509.IPAddress(ip_address("127.0.0.1")),
            x509.IPAddress(ip_address("::1")),
        ]
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        # Envoy enforces it on every certificate of a TLS handshake.
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _is_good(
    certificate: x509.Certificate, name: str, authority: x509.Certificate, now: datetime
) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names == _alternative_names(name) and _lasts(certificate, now)


def _lasts(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc - _RENEW_BEFORE


def _load(folder: Path, name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None:
    """The certificate and its key; None if one is missing or invalid, or they do not match."""
    try:
        certificate = x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / f"{name}.key").read_bytes(), None)
    except (OSError, ValueError):
        return None
    if (
        not isinstance(key, ec.EllipticCurvePrivateKey)
        or key.public_key() != certificate.public_key()
    ):
        return None
    return certificate, key


def _store(
    folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    files.replace(folder / f"{name}.key", pem)
    files.replace(
        folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM), mode=0o644
    )

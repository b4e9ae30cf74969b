"""A small certificate authority for development: it issues what is missing, broken or about to expire.

Profiles follow RFC 5280 (4.2.1.1 to 4.2.1.12) strictly, so that OpenSSL with `-x509_strict`, gRPC's
BoringSSL and Python's own strict mode accept the chain.
"""

import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hsmd.disk import sync_directory

_CA_LIFE = timedelta(days=3650)
_LEAF_LIFE = timedelta(days=397)  # what browsers accept at most
_RENEW_BEFORE = timedelta(days=30)
_CLOCK_SKEW = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, both PEM files."""

    certificate: Path
    key: Path


def write_private(path: Path, content: bytes) -> None:
    """Replace path by content in one step, on disk when this returns, readable by its owner only."""
    staged = path.with_name(f".{path.name}.new")
    staged.unlink(missing_ok=True)
    with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)
    sync_directory(path.parent)


class Authority:
    """The authority in one folder: ca.pem, ca.key and every pair that it issued."""

    def __init__(self, folder: Path, name: str) -> None:
        """Load the authority of folder, or make a new one when there is none that will last."""
        self.folder = folder
        self.pair = Pair(folder / "ca.pem", folder / "ca.key")
        loaded = _load(self.pair)
        if loaded is None or loaded[0].issuer != loaded[0].subject:
            loaded = _issue(self.pair, _name(name), None, _ca_extensions(), _CA_LIFE)
        self._certificate, self._key = loaded

    def server(self, stem: str, hosts: Iterable[str]) -> Pair:
        """Return a server certificate for DNS names and addresses; the first is its common name."""
        names = list(hosts)
        alternatives = x509.SubjectAlternativeName([_general_name(each) for each in names])
        return self._leaf(stem, names[0], [alternatives, _extended(ExtendedKeyUsageOID.SERVER_AUTH)])

    def client(self, stem: str, name: str) -> Pair:
        """Return a client certificate whose common name is name."""
        return self._leaf(stem, name, [_extended(ExtendedKeyUsageOID.CLIENT_AUTH)])

    def _leaf(self, stem: str, name: str, extensions: list[x509.ExtensionType]) -> Pair:
        pair = Pair(self.folder / f"{stem}.pem", self.folder / f"{stem}.key")
        loaded = _load(pair)
        if loaded is None or not self._is_ours(loaded[0]):
            issuer = (self._certificate, self._key)
            _issue(pair, _name(name), issuer, [*_leaf_extensions(), *extensions], _LEAF_LIFE)
        return pair

    def _is_ours(self, certificate: x509.Certificate) -> bool:
        try:
            certificate.verify_directly_issued_by(self._certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True


_Loaded = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def _load(pair: Pair) -> _Loaded | None:
    """Return the pair, or None when it is missing, torn by a crash or has less than 30 days to go."""
    try:
        certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
        key = serialization.load_pem_private_key(pair.key.read_bytes(), password=None)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    lasting = certificate.not_valid_after_utc - datetime.now(UTC) > _RENEW_BEFORE
    if (
        isinstance(key, ec.EllipticCurvePrivateKey)
        and key.public_key() == certificate.public_key()
        and lasting
    ):
        return certificate, key
    return None


def _issue(
    pair: Pair,
    subject: x509.Name,
    issuer: _Loaded | None,
    extensions: list[x509.ExtensionType],
    life: timedelta,
) -> _Loaded:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer_name, signer = (issuer[0].subject, issuer[1]) if issuer else (subject, key)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    for extension in extensions:
        critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
        builder = builder.add_extension(extension, critical=critical)
    certificate = builder.sign(signer, hashes.SHA256())
    write_private(pair.key, _private_pem(key))
    write_private(pair.certificate, certificate.public_bytes(serialization.Encoding.PEM))
    return certificate, key


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _extended(purpose: x509.ObjectIdentifier) -> x509.ExtendedKeyUsage:
    return x509.ExtendedKeyUsage([purpose])


def _ca_extensions() -> list[x509.ExtensionType]:
    return [x509.BasicConstraints(ca=True, path_length=0), _usage(signs_certificates=True)]


def _leaf_extensions() -> list[x509.ExtensionType]:
    return [x509.BasicConstraints(ca=False, path_length=None), _usage(signs_certificates=False)]


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
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

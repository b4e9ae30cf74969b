"""Revoked client certificates: the list's file, good and bad, and a daemon whose list is replaced."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hsmd.api.revocation_list import RevocationList, check_file
from hsmd.config import ConfigError
from hsmd.daemon.certificates import Authority
from hsmd.errors import Error
from tests.calls import refusal, refused
from tests.credentials import signed
from tests.stand import Stand
from tests.test_temporary_keys import by_certificate as temporary_key

NAME = "hsmd development CA"
HOUR = timedelta(hours=1)


class Ca:
    """A development CA with its key, to sign lists with."""

    def __init__(self, folder: Path, name: str = NAME) -> None:
        folder.mkdir(exist_ok=True)
        self.authority = Authority(folder, name)
        self.folder = folder
        self.pem = folder / "ca.pem"
        self.key: Any = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        self.certificate = x509.load_pem_x509_certificate(self.pem.read_bytes())

    def client(self, name: str) -> bytes:
        return self.authority.client(name, name).certificate.read_bytes()

    def crl(
        self,
        *revoked: bytes,
        made: timedelta = -HOUR,
        due: timedelta | None = HOUR,
        key: Any = None,
        extension: x509.ExtensionType | None = None,
    ) -> x509.CertificateRevocationList:
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
        builder = builder.last_update(now + made).next_update(now + (due or HOUR))
        for pem in revoked:
            serial = x509.load_pem_x509_certificate(pem).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - HOUR)
            builder = builder.add_revoked_certificate(entry.build())
        if extension is not None:
            builder = builder.add_extension(extension, critical=True)
        return builder.sign(key or self.key, hashes.SHA256())


def pem(*lists: x509.CertificateRevocationList) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in lists)


def replace(path: Path, content: bytes) -> None:
    """In one step, as one should."""
    staged = path.with_suffix(".new")
    staged.write_bytes(content)
    staged.replace(path)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    return Ca(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clients.crl"


def _refused(listed: RevocationList, certificate: bytes) -> str:
    with pytest.raises(Error) as caught:
        listed.check(certificate)
    assert caught.value.fault.code == "APIGW.0301"
    return caught.value.message


def test_who_is_listed_is_refused(ca: Ca, path: Path) -> None:
    good, bad = ca.client("good"), ca.client("bad")
    for content in (pem(ca.crl(bad)), ca.crl(bad).public_bytes(serialization.Encoding.DER)):
        replace(path, content)
        check_file(path, ca.pem)
        listed = RevocationList(path, ca.pem, HOUR)
        listed.check(good)
        assert "revoked" in _refused(listed, bad)


def test_a_new_list_counts_at_once_and_a_broken_one_does_not(
    ca: Ca, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = ca.client("first"), ca.client("second")
    path.write_bytes(pem(ca.crl(first, made=-4 * HOUR)))
    listed = RevocationList(path, ca.pem, HOUR)
    listed.check(second)
    replace(path, pem(ca.crl(first, second, made=-3 * HOUR)))
    assert "revoked" in _refused(listed, second)
    caplog.set_level(logging.ERROR)
    older = pem(ca.crl(made=-5 * HOUR))
    for number, broken in enumerate([*_broken(ca, first), older], 1):
        replace(path, broken)
        assert "revoked" in _refused(listed, second), "the list before counts on"
        listed.check(ca.client("good"))
        assert len(caplog.records) == number
    path.unlink()
    assert "revoked" in _refused(listed, second)
    replace(path, pem(ca.crl(first, made=-2 * HOUR)))
    listed.check(second)
    assert "revoked" in _refused(listed, first)


def _broken(ca: Ca, certificate: bytes) -> Iterator[bytes]:
    whole = pem(ca.crl(certificate))
    yield b""
    yield whole[: len(whole) // 2]
    yield b"no list at all"
    yield whole.replace(b"A", b"B", 3)
    yield pem(ca.crl(certificate, key=ec.generate_private_key(ec.SECP256R1())))
    yield pem(ca.crl(certificate, made=-48 * HOUR, due=-HOUR))
    yield pem(ca.crl(certificate, made=HOUR, due=2 * HOUR))
    yield pem(ca.crl(certificate), ca.crl(certificate))
    yield pem(ca.crl(certificate, extension=x509.DeltaCRLIndicator(1)))


def test_the_first_file_must_be_right(ca: Ca, path: Path) -> None:
    certificate = ca.client("good")
    for broken in _broken(ca, certificate):
        path.write_bytes(broken)
        listed = RevocationList(path, ca.pem, HOUR)
        with pytest.raises(ConfigError, match=r"grpc\.client_crl"):
            check_file(path, ca.pem)
        assert "no revocation list" in _refused(listed, certificate)
    path.unlink()
    with pytest.raises(ConfigError, match="can't be read"):
        check_file(path, ca.pem)
    listed = RevocationList(path, ca.pem, HOUR)
    assert "no revocation list" in _refused(listed, certificate)
    replace(path, pem(ca.crl()))
    listed.check(certificate)


def test_lists_of_others(ca: Ca, path: Path, tmp_path: Path) -> None:
    other = Ca(tmp_path / "other", "another CA")
    certificate = other.client("theirs")
    path.write_bytes(pem(other.crl(certificate)))
    with pytest.raises(ConfigError, match="no authority"):
        check_file(path, ca.pem)
    same_name = Ca(tmp_path / "same")
    path.write_bytes(pem(same_name.crl()))
    with pytest.raises(ConfigError, match="signature"):
        check_file(path, ca.pem)
    both = tmp_path / "both.pem"
    both.write_bytes(ca.pem.read_bytes() + other.pem.read_bytes())
    mine = ca.client("good")
    path.write_bytes(pem(ca.crl(mine)))
    listed = RevocationList(path, both, HOUR)
    assert "revoked" in _refused(listed, mine)
    assert "no revocation list" in _refused(listed, certificate)
    replace(path, pem(ca.crl(mine), other.crl()))
    listed.check(certificate)
    assert "revoked" in _refused(listed, mine)
    assert "can't be read" in _refused(listed, b"")


def _below(ca: Ca, folder: Path, name: str) -> tuple[Ca, bytes]:
    """An authority, and its certificate by another one instead of by itself (PEM)."""
    made = Ca(folder, name)
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(made.certificate.subject)
    builder = builder.issuer_name(ca.certificate.subject).public_key(made.key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - HOUR).not_valid_after(now + HOUR)
    signed_by = builder.add_extension(x509.BasicConstraints(True, None), critical=True).sign(
        ca.key, hashes.SHA256()
    )
    return made, signed_by.public_bytes(serialization.Encoding.PEM)


def test_an_authority_that_is_revoked_takes_all_it_has_issued_along(
    ca: Ca, path: Path, tmp_path: Path
) -> None:
    middle, middle_pem = _below(ca, tmp_path / "middle", "middle CA")
    lower, lower_pem = _below(middle, tmp_path / "lower", "lower CA")
    everybody = tmp_path / "all.pem"
    everybody.write_bytes(ca.pem.read_bytes() + lower_pem + middle_pem)
    own, of_middle, of_lower = ca.client("own"), middle.client("of-middle"), lower.client("of-lower")
    path.write_bytes(pem(ca.crl(made=-3 * HOUR), middle.crl(made=-3 * HOUR), lower.crl(made=-3 * HOUR)))
    listed = RevocationList(path, everybody, HOUR)
    for each in (own, of_middle, of_lower):
        listed.check(each)
    replace(
        path, pem(ca.crl(made=-2 * HOUR), middle.crl(lower_pem, made=-2 * HOUR), lower.crl(made=-2 * HOUR))
    )
    assert "issuer of this certificate is revoked" in _refused(listed, of_lower)
    listed.check(of_middle)
    replace(path, pem(ca.crl(middle_pem), middle.crl(), lower.crl()))
    for each in (of_middle, of_lower):
        assert "issuer of this certificate is revoked" in _refused(listed, each)
    listed.check(own)
    # an authority that was renewed counts on by its other certificate
    renewed, renewed_pem = _below(ca, tmp_path / "renewed", "middle CA")
    everybody.write_bytes(ca.pem.read_bytes() + middle_pem + renewed_pem)
    path.write_bytes(pem(ca.crl(middle_pem), renewed.crl()))
    RevocationList(path, everybody, HOUR).check(renewed.client("of-renewed"))


def test_a_list_that_is_out_of_date(
    ca: Ca, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = ca.client("good"), ca.client("bad")
    path.write_bytes(pem(ca.crl(bad)))
    listed = RevocationList(path, ca.pem, 24 * HOUR)
    caplog.set_level(logging.ERROR)
    now = datetime.now(UTC).timestamp()
    monkeypatch.setattr("time.time", lambda: now + 2 * 3600)
    listed.check(good)
    listed.check(good)
    assert "revoked" in _refused(listed, bad)
    assert ["out of date" in each.message for each in caplog.records] == [True]
    monkeypatch.setattr("time.time", lambda: now + 26 * 3600)
    assert "out of date" in _refused(listed, good)


# A daemon


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stand, Path]]:
    folder = tmp_path_factory.mktemp("listing")
    path = folder / "clients.crl"
    settings = {"HSMD__GRPC__CLIENT_CRL": str(path), "HSMD__GRPC__WORKERS": "2"}
    stand = Stand(folder / "stand", settings)
    path.write_bytes(pem(Ca(stand.dev.ca.parent).crl(made=-2 * HOUR)))
    try:
        stand.start()
        yield stand, path
    finally:
        stand.stop()


def test_a_revoked_certificate_is_out_with_the_next_call_on_every_worker(
    listing: tuple[Stand, Path],
) -> None:
    stand, path = listing
    ca = Ca(stand.dev.ca.parent)
    lost = stand.add_tenant("lost")
    with stand.client() as mine, stand.client(lost) as theirs, stand.client(lost) as again:
        for client in (mine, theirs, again):
            client.list_keys()
        key = temporary_key(theirs)
        by_key = {"access_key": key.access, "secret": key.secret}
        sent = [("X-Security-Token", key.securitytoken)]
        assert signed(stand, "GET", "/v3/regions", extra=sent, **by_key).status == 200
        replace(path, pem(ca.crl(lost.certificate.read_bytes(), made=-HOUR)))
        for _ in range(4):
            refused(signed(stand, "GET", "/v3/regions", extra=sent, **by_key), "APIGW.0301")
            for client in (theirs, again):
                with refusal("APIGW.0301") as seen:
                    client.random(32)
                assert "revoked" in seen.last.message
        mine.list_keys()
        (one,) = [each for each in stand.audit() if each["request_id"] == seen.last.request_id]
        assert (one["result"], one["source"], one["user_id"]) == ("APIGW.0301", "127.0.0.1", "")
        replace(path, b"nonsense")
        with refusal("APIGW.0301"):
            theirs.random(32)
        mine.list_keys()
        assert "not taken in" in stand.log()


def test_a_revoked_gateway_is_nobody(listing: tuple[Stand, Path]) -> None:
    stand, path = listing
    ca = Ca(stand.dev.ca.parent)
    assert stand.rest("GET", "/v3/regions", token=stand.token()).status == 200
    gateway = (stand.dev.ca.parent / "gateway-client.pem").read_bytes()
    replace(path, pem(ca.crl(gateway, made=timedelta(0))))
    token = stand.rest("POST", "/v3/auth/tokens", {"auth": {"identity": {"methods": ["token"]}}})
    assert (token.status, token.json["error_code"]) == (401, "APIGW.0301")
    replace(path, pem(ca.crl(made=timedelta(seconds=1))))


def test_a_daemon_does_not_start_with_a_broken_list(tmp_path: Path) -> None:
    path = tmp_path / "clients.crl"
    path.write_bytes(b"nonsense")
    stand = Stand(tmp_path / "stand", {"HSMD__GRPC__CLIENT_CRL": str(path)})
    with pytest.raises(Exception, match=r"exited|ended|78"):
        stand.start(gateway=False)
    assert "client_crl" in stand.log()


def test_without_a_list_nothing_is_looked_at(stand: Stand) -> None:
    assert "HSMD__GRPC__CLIENT_CRL" not in stand.settings
    with stand.client() as client:
        client.list_keys()

"""The development authority: what it issues, OpenSSL accepts; what is broken, it issues again."""

import ssl
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from hsmd.daemon import certificates
from hsmd.daemon.certificates import Authority, Pair, write_private


def loaded(pair: Pair) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.certificate.read_bytes())


def openssl_verifies(authority: Authority, pair: Pair, purpose: str, *more: str) -> bool:
    command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, *more]
    command += ["-CAfile", str(authority.pair.certificate), str(pair.certificate)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def handshake(authority: Authority, server: Pair, client: Pair, host: str) -> None:
    """A whole TLS 1.3 handshake in memory, both sides checking; raises ssl.SSLError when one refuses."""
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(server.certificate, server.key)
    theirs.load_verify_locations(authority.pair.certificate)
    theirs.verify_mode = ssl.CERT_REQUIRED
    ours = ssl.create_default_context(cafile=str(authority.pair.certificate))
    ours.verify_flags |= ssl.VERIFY_X509_STRICT
    ours.load_cert_chain(client.certificate, client.key)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        ours.wrap_bio(to_client, to_server, server_hostname=host),
        theirs.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert [side.version() for side in sides] == ["TLSv1.3", "TLSv1.3"]


def test_a_server_certificate_serves_all_its_names_and_nothing_else(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "test CA")
    pair = authority.server("server", ("localhost", "127.0.0.1", "::1"))
    for check in (["-verify_hostname", "localhost"], ["-verify_ip", "127.0.0.1"], ["-verify_ip", "::1"]):
        assert openssl_verifies(authority, pair, "sslserver", *check)
    assert not openssl_verifies(authority, pair, "sslserver", "-verify_hostname", "example.com")
    assert not openssl_verifies(authority, pair, "sslclient")


def test_a_client_certificate_carries_the_name_and_serves_nobody(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "test CA")
    pair = authority.client("user", "alice")
    assert openssl_verifies(authority, pair, "sslclient")
    assert not openssl_verifies(authority, pair, "sslserver")
    assert loaded(pair).subject.rfc4514_string() == "CN=alice"
    usage = loaded(pair).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_both_sides_of_mutual_tls_agree(tmp_path: Path, host: str) -> None:
    authority = Authority(tmp_path, "test CA")
    server = authority.server("server", ("localhost", "127.0.0.1", "::1"))
    handshake(authority, server, authority.client("user", "alice"), host)


def test_another_authority_of_the_same_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ours, theirs = (Authority(tmp_path / name, "test CA") for name in "ab")
    server = ours.server("server", ("localhost",))
    with pytest.raises(ssl.SSLError):
        handshake(ours, server, theirs.client("user", "alice"), "localhost")


def test_what_stands_is_kept(tmp_path: Path) -> None:
    def issue() -> list[bytes]:
        authority = Authority(tmp_path, "test CA")
        authority.server("server", ("localhost",))
        return [path.read_bytes() for path in sorted(tmp_path.iterdir())]

    assert issue() == issue()


def test_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    Authority(tmp_path, "test CA").client("user", "alice")
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("*.key")} == {0o600}


def test_nothing_unfinished_stays(tmp_path: Path) -> None:
    Authority(tmp_path, "test CA").client("user", "alice")
    assert {path.name for path in tmp_path.iterdir()} == {"ca.pem", "ca.key", "user.pem", "user.key"}


@pytest.mark.parametrize("damage", ["missing", "empty", "other key", "other authority"])
def test_what_a_cut_run_left_is_issued_again(tmp_path: Path, damage: str) -> None:
    authority = Authority(tmp_path, "test CA")
    pair = authority.client("user", "alice")
    other = authority.client("other", "other")
    if damage == "missing":
        pair.certificate.unlink()
    elif damage == "empty":
        pair.key.write_bytes(b"")
    elif damage == "other key":
        pair.key.write_bytes(other.key.read_bytes())
    else:
        authority.pair.key.unlink()
    again = Authority(tmp_path, "test CA")
    assert openssl_verifies(again, again.client("user", "alice"), "sslclient")
    handshake(again, again.server("server", ("localhost",)), again.client("user", "alice"), "localhost")


def test_what_is_about_to_expire_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path, "test CA")
    monkeypatch.setattr(certificates, "_LEAF_LIFE", timedelta(days=29))
    short = loaded(authority.client("user", "alice"))
    monkeypatch.undo()
    renewed = loaded(authority.client("user", "alice"))
    assert short.not_valid_after_utc < datetime.now(UTC) + timedelta(days=30)
    assert renewed.not_valid_after_utc > datetime.now(UTC) + timedelta(days=390)
    assert loaded(Authority(tmp_path, "test CA").client("user", "alice")) == renewed


def test_a_private_file_is_private_from_its_first_moment(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

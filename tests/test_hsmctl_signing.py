"""hsmctl sign, verify, public-key, mac and key create --spec: against a whole daemon."""

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hsmd.cli.hsmctl import run
from hsmd.client import Client
from tests.calls import fresh
from tests.specs import Keys
from tests.stand import Stand

Shell = Callable[..., tuple[int, bytes, str]]
"""Arguments and `given` for standard input; exit code, output, messages."""


@pytest.fixture
def shell(
    stand: Stand, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    for name in [name for name in os.environ if name.startswith("HSMD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HSMD_GRPC", stand.dev.grpc)
    for name, path in (("CA", stand.dev.ca), ("CERT", stand.dev.certificate), ("KEY", stand.dev.key)):
        monkeypatch.setenv(f"HSMD_{name}", str(path))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, given: bytes = b"") -> tuple[int, bytes, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        code = run(arguments)
        out, err = capsysbinary.readouterr()
        return code, out, err.decode()

    return call


def test_keys_of_a_spec_and_usage(shell: Shell, client: Client) -> None:
    code, out, _ = shell("key", "create", fresh(), "--spec", "EC_P256", "--usage", "KEY_AGREEMENT")
    assert code == 0
    told = client.describe_key(out.decode().strip())
    assert (told.key_spec, told.key_usage) == (5, 4)
    assert shell("key", "create", fresh(), "--spec", "DES")[0] == 2
    assert shell("key", "create", fresh(), "--usage", "SIGN_VERIFY")[0] == 1  # AES does not


@pytest.mark.parametrize("spec", ["RSA_2048", "EC_P256", "EC_P384", "SECP256K1", "ED25519"])
def test_signed_and_verified(shell: Shell, keys: Keys, spec: str) -> None:
    key_id = keys(spec)
    data = b"letter" * (500 if spec == "ED25519" else 100_000)
    Path("letter").write_bytes(data)
    assert shell("sign", "--key", key_id, "--in", "letter", "--out", "letter.sig")[:2] == (0, b"")
    assert shell("verify", "--key", key_id, "--in", "letter", "--signature", "letter.sig")[0] == 0
    code, out, _ = shell("sign", "--key", key_id, given=data)
    assert code == 0
    Path("text.sig").write_bytes(base64.b64encode(out) + b"\n")
    assert shell("verify", "--key", key_id, "--signature", "text.sig", given=data)[0] == 0
    code, _, err = shell("verify", "--key", key_id, "--signature", "text.sig", given=data + b"!")
    assert (code, err.strip()) == (1, "The signature is NOT valid.")


def test_openssl_verifies(shell: Shell, keys: Keys) -> None:
    key_id = keys("EC_P384")
    Path("letter").write_bytes(b"dear")
    assert shell("sign", "--key", key_id, "--in", "letter", "--out", "letter.sig")[0] == 0
    Path("key.pem").write_bytes(shell("public-key", key_id)[1])
    argv = ["openssl", "dgst", "-sha384", "-verify", "key.pem", "-signature", "letter.sig", "letter"]
    assert subprocess.run(argv, check=True, capture_output=True).stdout == b"Verified OK\n"


def test_digests_and_documents(shell: Shell, keys: Keys) -> None:
    key_id, algorithm = keys("RSA_2048"), "RSASSA_PKCS1_V1_5_SHA_512"
    Path("digest").write_bytes(bytes(64))
    common = ("--key", key_id, "--algorithm", algorithm, "--digest", "--in", "digest")
    code, out, _ = shell("--json", "sign", *common)
    told = json.loads(out)
    assert (code, told["signing_algorithm"]) == (0, algorithm)
    Path("signature").write_text(told["signature"])
    code, out, _ = shell("verify", *common, "--signature", "signature", "--json")
    assert (code, json.loads(out)["signature_valid"]) == (0, True)
    Path("digest").write_bytes(bytes(63))
    code, _, err = shell("sign", *common)
    assert code == 1
    assert "KMS.0329" in err


def test_codes(shell: Shell, keys: Keys) -> None:
    for bits in (256, 512):
        key_id = keys(f"HMAC_{bits}")
        code, out, _ = shell("mac", "--key", key_id, given=b"ticket")
        assert (code, len(out)) == (0, bits // 8)
        Path("code").write_bytes(out)
        assert shell("mac", "ticket", "--key", key_id, "--verify", "code")[0] == 0
        assert shell("mac", "other", "--key", key_id, "--verify", "code")[0] == 1
        told = json.loads(shell("mac", "ticket", "--key", key_id, "--json")[1])
        assert told == {"mac_algorithm": f"HMAC_SHA_{bits}", "mac": base64.b64encode(out).decode()}


def test_wrong_usage(shell: Shell, keys: Keys) -> None:
    for arguments in (
        ("sign", "--key", keys("AES_256")),
        ("sign", "--key", keys("HMAC_256")),
        ("mac", "--key", keys("AES_256")),
        ("verify", "--key", keys("EC_P256"), "--signature", "-"),
        ("mac", "--key", keys("HMAC_256"), "--verify", "-"),
        ("sign", "--key", keys("EC_P256"), "--algorithm", "MD5"),
        ("sign",),
    ):
        assert shell(*arguments, given=b"x")[0] == 2, arguments
    assert shell("public-key", keys("AES_256"))[0] == 1
    assert shell("sign", "--key", keys("EC_P256"), "--in", "nowhere")[0] == 4

"""UKeys as tokens, SoftHSM2's and a TPM 2.0, by the same tests: keys, PINs, addresses, hsmctl by itself."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hsmd import ukey
from hsmd.daemon.certificates import Authority
from hsmd.hsm import AddressError
from hsmd.hsm.address import parse_ukey_address
from hsmd.ukey import Candidate, Purpose, UKeyError
from tests import tpms
from tests.stand import Stand
from tests.ukeys import Crew, Holder, opened

needs_tpm = pytest.mark.skipif(bool(tpms.missing()), reason=tpms.missing() or "there is one")
STATEMENT = ukey.statement(Purpose.LOGIN, {"a": "b"})
CONTEXT = {"for": "a test"}

# Kind of token, kind of key, what it opens: SoftHSM2 2.6.1 has OAEP with SHA-1 only, tpm2-pkcs11 1.9 no ECDH.
TOKENS = {
    "softhsm-rsa": ("softhsm", "rsa-2048", "rsa-oaep-sha1"),
    "softhsm-p256": ("softhsm", "ec-p256", "ecdh"),
    "softhsm-p384": ("softhsm", "ec-p384", "ecdh"),
    "tpm-rsa": ("tpm", "rsa-2048", "rsa-oaep-sha256"),
    "tpm-p256": ("tpm", "ec-p256", ""),
}


@dataclass
class Bench:
    stand: Stand
    crew: Crew
    holders: dict[str, Holder]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A daemon that knows a UKey of each kind; those of the TPM where there is one."""
    folder = tmp_path_factory.mktemp("tokens")
    stand = Stand(folder)
    crew = Crew(stand, folder)
    holders = {}
    with ExitStack() as stack:
        for name, (where, kind, _) in TOKENS.items():
            if where == "softhsm":
                holders[name] = crew.token(name, "administrator", kind)
            elif not tpms.missing():
                tpm = stack.enter_context(tpms.running(folder / name, name))
                holders[name] = crew.holder(
                    name, "administrator", kind, tpm.uri, tpm.pin, folder / name, tpm.environment
                )
        crew.enrol(0, 0, *holders.values())
        try:
            stand.start(gateway=False)
            yield Bench(stand, crew, holders)
        finally:
            stand.stop()


@pytest.fixture(params=[pytest.param(name, marks=needs_tpm if "tpm" in name else ()) for name in TOKENS])
def holder(request: pytest.FixtureRequest, bench: Bench) -> Holder:
    return bench.holders[request.param]


def kind_of(holder: Holder) -> tuple[str, str, str]:
    return TOKENS[holder.name]


def test_it_signs_inside(holder: Holder) -> None:
    with opened(holder) as token:
        signature = token.sign(STATEMENT)
        assert token.label == "hsmd"
        assert (
            ukey.describe(token.public_key).lower().replace(" ", "-").replace("p-", "p") == kind_of(holder)[1]
        )
    assert ukey.verify(holder.public_key, STATEMENT, signature)
    assert not ukey.verify(holder.public_key, STATEMENT + b"x", signature)


def test_it_opens_what_it_says_it_opens(holder: Holder) -> None:
    opens = kind_of(holder)[2]
    assert holder.opens == opens
    if not opens:
        return
    box = ukey.make_box(holder.public_key, opens, b"a share", CONTEXT)
    with opened(holder) as token:
        assert ukey.open_box(token.public_key, box, CONTEXT, token) == b"a share"
        with pytest.raises(UKeyError):
            ukey.open_box(token.public_key, box, {"for": "another"}, token)
        broken = json.loads(box)
        broken["wrapped"] = broken["sealed"]
        with pytest.raises(UKeyError):
            ukey.open_box(token.public_key, json.dumps(broken).encode(), CONTEXT, token)
        assert token.sign(STATEMENT)  # it still works


def test_it_logs_in_at_the_daemon(bench: Bench, holder: Holder) -> None:
    found = json.loads(bench.crew.hsmctl(holder, "--json", "ukey", "list"))
    (own,) = [each for each in found["ukeys"] if each["name"] == holder.name]
    assert own["fingerprint"] == holder.fingerprint
    assert own["opens"] == kind_of(holder)[2]
    shown = json.loads(bench.crew.hsmctl(holder, "ukey", "show", own["id"], "--json"))
    assert shown == own


def test_it_shows_itself(bench: Bench, holder: Holder) -> None:
    shown = json.loads(bench.crew.hsmctl(holder, "--json", "ukey", "show"))
    assert shown["fingerprint"] == holder.fingerprint
    assert shown["opens"] == kind_of(holder)[2]
    assert shown["token"] == holder.name


def test_its_request_proves_what_it_is(bench: Bench, holder: Holder, tmp_path: Path) -> None:
    out = tmp_path / "request.json"
    bench.crew.hsmctl(holder, "ukey", "request", "zoe", "--role", "auditor", "--out", str(out))
    made = Candidate.of_values(json.loads(out.read_text()))
    assert (made.name, made.role, made.public_key) == ("zoe", "auditor", holder.public_key)
    assert bool(made.opened) == bool(kind_of(holder)[2])
    (instance,) = {_instance(bench)}
    assert ukey.verify(holder.public_key, made.statement(instance), made.signature)
    assert not ukey.verify(
        holder.public_key, replace(made, role="operator").statement(instance), made.signature
    )
    assert b"PRIVATE" not in out.read_bytes()


def _instance(bench: Bench) -> str:
    holder = bench.holders["softhsm-p256"]
    return str(json.loads(bench.crew.hsmctl(holder, "--json", "ukey", "list"))["instance"])


@needs_tpm
def test_a_key_in_a_tpm_is_no_file_s(bench: Bench, tmp_path: Path) -> None:
    """Another TPM with a copy of the store of tpm2-pkcs11 has none of the first one's keys."""
    holder = bench.holders["tpm-rsa"]
    with tpms.running(tmp_path / "other", "tpm-rsa") as other:
        store = Path(holder.more["TPM2_PKCS11_STORE"]) / "tpm2_pkcs11.sqlite3"
        copy = Path(other.environment["TPM2_PKCS11_STORE"]) / "tpm2_pkcs11.sqlite3"
        copy.write_bytes(store.read_bytes())
        thief = replace(holder, more=other.environment)
        done = bench.crew.run(thief, "ukey", "show")
    assert done.returncode != 0


# What goes wrong


def no(bench: Bench, holder: Holder, *words: str, **how: Any) -> str:
    done = bench.crew.run(holder, *words, **how)
    assert done.returncode == 4, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    assert holder.pin not in done.stderr
    return done.stderr


def test_a_wrong_pin_is_told_and_not_tried_again(bench: Bench, tmp_path: Path) -> None:
    holder = bench.holders["softhsm-p256"]
    pin = tmp_path / "pin"
    pin.write_text("0000")
    pin.chmod(0o600)
    assert "refuses the PIN" in no(bench, holder, "--ukey-pin-file", str(pin), "ukey", "show")
    pin.write_text("")
    assert "empty" in no(bench, holder, "--ukey-pin-file", str(pin), "ukey", "show")
    pin.chmod(0o644)
    assert "chmod 600" in no(bench, holder, "--ukey-pin-file", str(pin), "ukey", "show")
    assert "No such file" in no(bench, holder, "--ukey-pin-file", str(tmp_path / "none"), "ukey", "show")


def test_the_pin_is_asked_and_not_shown(bench: Bench) -> None:
    holder = bench.holders["softhsm-p256"]
    script = (
        "import os, pty, sys\n"
        "pid, fd = pty.fork()\n"
        "if pid == 0: os.execvp(sys.argv[1], sys.argv[1:])\n"
        "said = b''\n"
        "while b'PIN of the UKey' not in said: said += os.read(fd, 1000)\n"
        f"os.write(fd, b'{holder.pin}\\n')\n"
        "try:\n"
        "    while more := os.read(fd, 1000): said += more\n"
        "except OSError: pass\n"
        "sys.stdout.buffer.write(said)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    environment = {**os.environ, **bench.crew.environment(holder)}
    del environment["HSMD_UKEY_PIN_FILE"]
    hsmctl = str(Path(sys.executable).with_name("hsmctl"))
    done = subprocess.run(
        [sys.executable, "-c", script, hsmctl, "ukey", "show"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    assert holder.fingerprint in done.stdout.replace("\r\n", "")
    assert holder.pin not in done.stdout


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("nothing", "begins with pkcs11:"),
        ("pkcs11:token=x", "module-path: is missing"),
        ("pkcs11:token=x?module-path=relative.so", "an absolute path"),
        ("pkcs11:token=x?module-path=/nowhere.so", "can't be loaded"),
        ("pkcs11:token=x?module-path=/usr/lib/softhsm/libsofthsm2.so", "absent"),
        ("pkcs11:token=x;pin-value=1?module-path=/usr/lib/softhsm/libsofthsm2.so", "pin-value"),
        ("pkcs11:token=x?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-value=1", "PIN never stands"),
        ("pkcs11:type=public?module-path=/x.so", "a private key is due"),
        ("pkcs11:object=a;object=b?module-path=/x.so", "object: stands twice"),
    ],
)
def test_an_address_that_is_none_is_told(bench: Bench, uri: str, said: str) -> None:
    assert said in no(bench, bench.holders["softhsm-p256"], "--ukey", uri, "ukey", "show")


def test_missing_options_are_named(bench: Bench) -> None:
    holder = bench.holders["softhsm-p256"]
    bare = replace(holder, uri="")
    for words in (("ukey", "show"), ("ukey", "list"), ("ukey", "init")):
        done = bench.crew.run(bare, *words)
        assert done.returncode == 2
        assert "--ukey" in done.stderr
    done = bench.crew.run(holder, "ukey", "list", more={"HSMD_ADMIN": "", "HSMD_CA": ""})
    assert done.returncode == 2
    assert "--admin" in done.stderr
    assert "--ca" in done.stderr


def test_a_key_is_made_once_and_several_are_told_apart(bench: Bench, tmp_path: Path) -> None:
    crew = Crew(Stand(tmp_path / "none"), tmp_path)
    crew.port, crew.stand = bench.crew.port, bench.stand
    holder = crew.token("twice", "auditor")
    assert "already" in no(bench, holder, "ukey", "init")
    crew.hsmctl(holder, "ukey", "init", "--label", "second", "--kind", "rsa-2048")
    whole = replace(holder, uri=holder.uri.replace(";object=hsmd", ""))
    said = no(bench, whole, "ukey", "show")
    assert "object=hsmd" in said
    assert "object=second" in said
    key_id = said.split("object=second id=")[1].split()[0].strip(",")
    encoded = "".join(f"%{key_id[at : at + 2]}" for at in range(0, len(key_id), 2))
    named = replace(whole, uri=whole.uri.replace("?", f";id={encoded}?"))
    assert json.loads(crew.hsmctl(named, "--json", "ukey", "show"))["object"] == "second"


def test_a_token_without_a_key_says_what_to_do(bench: Bench, tmp_path: Path) -> None:
    holder = bench.holders["softhsm-p256"]
    other = replace(holder, uri=holder.uri.replace("object=hsmd", "object=none"))
    assert "hsmctl ukey init" in no(bench, other, "ukey", "show")


def test_its_certificate_comes_along(bench: Bench, tmp_path: Path) -> None:
    holder = bench.holders["softhsm-p384"]
    pair = Authority(tmp_path, "people").client("x", "x")
    der = x509.load_pem_x509_certificate(pair.certificate.read_bytes()).public_bytes(Encoding.DER)
    program = (
        "import sys, pkcs11\n"
        "from pkcs11 import Attribute, ObjectClass, CertificateType\n"
        "token = pkcs11.lib(sys.argv[1]).get_token(token_label=sys.argv[2])\n"
        "with token.open(rw=True, user_pin=sys.argv[3]) as session:\n"
        "    (key,) = session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY})\n"
        "    session.create_object({Attribute.CLASS: ObjectClass.CERTIFICATE, Attribute.TOKEN: True,\n"
        "        Attribute.CERTIFICATE_TYPE: CertificateType.X_509, Attribute.ID: key[Attribute.ID],\n"
        "        Attribute.SUBJECT: b'0', Attribute.VALUE: bytes.fromhex(sys.argv[4])})\n"
    )
    module = holder.uri.rpartition("=")[2]
    subprocess.run(
        [sys.executable, "-c", program, module, holder.name, holder.pin, der.hex()],
        env={**os.environ, **holder.more},
        check=True,
    )
    out = tmp_path / "request.json"
    bench.crew.hsmctl(holder, "ukey", "request", "x", "--role", "auditor", "--out", str(out))
    assert Candidate.of_values(json.loads(out.read_text())).certificate == der
    done = bench.crew.run(holder, "ukey", "request", "x", "--role", "auditor", "--out", str(out))
    assert done.returncode == 4
    assert "--force" in done.stderr


def test_two_commands_at_once_use_one_token(bench: Bench) -> None:
    holder = bench.holders["softhsm-p256"]
    environment = {**os.environ, **bench.crew.environment(holder)}
    hsmctl = str(Path(sys.executable).with_name("hsmctl"))
    processes = [
        subprocess.Popen(
            [hsmctl, "--json", "ukey", "list"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(4)
    ]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert len(json.loads(out)["ukeys"]) >= 3


# Addresses


def test_an_address_names_a_token_and_a_key() -> None:
    found = parse_ukey_address("pkcs11:token=a%20b;object=x%3by;id=%00%ff;type=private?module-path=/m.so")
    assert (found.token.token, found.label, found.key_id) == ("a b", "x;y", b"\0\xff")
    assert parse_ukey_address("pkcs11:?module-path=/m.so").label is None


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "pkcs11",
        "pkcs11:object=%ff?module-path=/m.so",
        "pkcs11:object=a b?module-path=/m.so",
        "pkcs11:x=1",
    ],
)
def test_what_is_no_address_is_refused(uri: str) -> None:
    with pytest.raises(AddressError):
        parse_ukey_address(uri)

"""Root keys: the next one takes its place, keys move, the old one goes when nothing needs it."""

import hmac
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hsmd.algorithms import ACCESS_KEY, KEY_SPECS
from hsmd.daemon import jobs
from hsmd.domain import (
    access_keys,
    access_points,
    crypto,
    datakeys,
    imports,
    keys,
    macs,
    pins,
    roots,
    rotation,
    signing,
)
from hsmd.domain.core import Call, Core
from hsmd.errors import PARAMETER_INVALID, ROOT_KEY_REFUSED, UNAVAILABLE, Error, Fault
from hsmd.keyring import with_token_key
from hsmd.store import SealBroken, rewraps
from hsmd.store import access_keys as access_key_rows
from hsmd.store import keys as key_rows
from hsmd.store import roots as rows
from hsmd.store.access_keys import AccessKey
from hsmd.store.identity import Domain, User, insert_domain, insert_user
from tests.house import CALLER, House, furnished
from tests.wrapping import oaep

HOUR = 60 * 60 * 1000
FIRST, SECOND, THIRD = (f"hsmd-root-{number}" for number in (1, 2, 3))
MESSAGE = b"message"
SIGNERS = {
    "RSA_2048": "RSASSA_PSS_SHA_256",
    "RSA_3072": "RSASSA_PKCS1_V1_5_SHA_384",
    "RSA_4096": "RSASSA_PKCS1_V1_5_SHA_512",
    "EC_P256": "ECDSA_SHA_256",
    "EC_P384": "ECDSA_SHA_384",
    "SECP256K1": "ECDSA_SHA_256",
    "ED25519": "ED25519_SHA_512",
    "ML_DSA_44": "ML_DSA",
    "ML_DSA_65": "ML_DSA",
    "ML_DSA_87": "ML_DSA",
}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with furnished(tmp_path) as made:
        yield made


def refused(fault: Fault, call: Any, text: str = "") -> None:
    with pytest.raises(Error) as refusal:
        call()
    assert refusal.value.fault is fault
    assert text in str(refusal.value)


def moved(house: House) -> None:
    """The warden moves all there is, and says so."""
    done = house.rounds(jobs.MOVES, jobs.ROOTS)
    assert done[-1] == 0


def labels(house: House) -> set[str]:
    """By which root keys rows are wrapped."""
    query = "SELECT DISTINCT root_label FROM {} WHERE wrapped IS NOT NULL"
    tables = ("key_versions", "access_keys", "access_points")
    return {label for table in tables for (label,) in house.sql(query.format(table))}


def states(house: House) -> dict[str, str]:
    return {each.root.label: each.root.state for each in roots.progress(house.call())}


def ended(house: House, label: str = FIRST, *, lose_pins: bool = True) -> None:
    house.now += 26 * HOUR
    roots.destroy(house.call(), label, lose_pins=lose_pins)
    house.now += roots.ENDING_MILLIS
    house.rounds(jobs.ROOTS)
    assert states(house)[label] == rows.DESTROYED
    assert label not in house.token.labels()


class Witness:
    """One key of each kind, an access key and an access point, and what they do."""

    def __init__(self, house: House) -> None:
        self.house = house
        call = house.call
        self.specs = [each for each in KEY_SPECS if house.token.supports(KEY_SPECS[each])]
        self.keys = {each: keys.create_key(call(), alias=each, spec=each).id for each in self.specs}
        self.blob = crypto.encrypt_data(call(), self.keys["AES_256"], b"data", "", b"aad")[1]
        rotation.rotate(call(), self.keys["AES_256"])
        self.later = crypto.encrypt_data(call(), self.keys["AES_256"], b"data", "", b"aad")[1]
        self.macs = {each: self.mac(each, house.core) for each in self.specs if each.startswith("HMAC")}
        self.secret = access_keys.new_secret(house.core)
        with house.core.store.write() as tx:
            insert_domain(tx, Domain(CALLER.domain_id, "home", enabled=True))
            insert_user(tx, User(CALLER.user_id, CALLER.domain_id, "somebody", "", enabled=True))
            made = AccessKey("AK", CALLER.user_id, self.secret.wrapped, self.secret.root_label, True, 1)
            access_key_rows.insert_access_key(tx, made)
        draft = access_points.Draft("6b1d9b3e-4f0b-4b7e-8a5e-0f6a4f4c2b11", "point", access_points.CUSTOM)
        self.point = access_points.create(call(), draft).id
        self.private = access_points.private_key(call(), self.point)[1]

    def mac(self, spec: str, core: Core) -> bytes:
        algorithm = f"HMAC_SHA_{spec[-3:]}"
        return macs.generate(self.house.call(core), self.keys[spec], algorithm, MESSAGE)[1]

    def check(self, core: Core) -> None:
        """They are the same still, for this process."""

        def call() -> Call:
            return self.house.call(core)

        for blob in (self.blob, self.later):
            assert crypto.decrypt_data(call(), "", blob, "", b"aad").data == b"data"
        for spec, algorithm in SIGNERS.items():
            if spec in self.keys:
                signature = signing.sign(call(), self.keys[spec], algorithm, MESSAGE, "RAW")[1]
                assert signing.verify(call(), self.keys[spec], algorithm, MESSAGE, "RAW", signature)[1]
        assert {each: self.mac(each, core) for each in self.macs} == self.macs
        with call().read() as tx:
            row = access_key_rows.get_access_key(tx, "AK")
        assert row is not None
        assert row.enabled
        text = self.secret.text.encode()
        material = replace_material(row)
        computed = core.keyring.use(
            "AK", 0, material, lambda handle: core.token.hmac(handle, MESSAGE), core.keyring.moment
        )
        assert computed == hmac.digest(text, MESSAGE, "sha256")
        assert access_points.private_key(call(), self.point)[1] == self.private


def replace_material(row: AccessKey) -> Any:
    from hsmd.domain.signatures import AccessKeyMaterial

    return AccessKeyMaterial(row.wrapped, row.root_label)


def test_every_kind_of_key_moves_and_the_old_root_key_goes(house: House) -> None:
    witness = Witness(house)
    other = house.new_core()  # a process that has everything loaded from before
    witness.check(other)
    assert labels(house) == {FIRST}

    made = roots.rotate(house.call(), SECOND)
    assert (made.label, made.state) == (SECOND, rows.CURRENT)
    assert states(house) == {FIRST: rows.OLD, SECOND: rows.CURRENT}
    assert house.token.labels()[-1] == "hsmd-sealing"
    assert {FIRST, SECOND} <= set(house.token.labels())
    between = keys.create_key(house.call(other), alias="between").id
    assert house.sql("SELECT root_label FROM key_versions WHERE key_id = ?", between) == [(SECOND,)]
    for core in (house.core, other, house.new_core()):
        witness.check(core)

    before = dict(house.sql("SELECT key_id || version, wrapped FROM key_versions"))
    total = len(before) - 1 + 2
    (first, _) = roots.progress(house.call())
    assert first.rows == {"key versions": len(before) - 1, "access keys": 1, "access points": 1}
    done = house.rounds(jobs.MOVES, jobs.ROOTS)
    assert done == [total + 1, 0, 0]
    assert labels(house) == {SECOND}
    assert roots.progress(house.call())[0].rows == {}
    after = dict(house.sql("SELECT key_id || version, wrapped FROM key_versions"))
    assert {each for each in before if before[each] == after[each]} == {f"{between}1"}
    for core in (house.core, other, house.new_core()):
        witness.check(core)

    ended(house)
    for core in (house.core, other, house.new_core()):
        witness.check(core)
    assert states(house) == {FIRST: rows.DESTROYED, SECOND: rows.CURRENT}

    roots.rotate(house.call(), THIRD)  # and so on
    moved(house)
    ended(house, SECOND)
    witness.check(house.new_core())
    assert [each for each in house.token.labels() if each.startswith("hsmd-root")] == [THIRD]


def test_each_moved_row_leaves_a_record(house: House) -> None:
    key = keys.create_key(house.call(), alias="key").id
    roots.rotate(house.call(name="rotate"), SECOND)
    assert house.records[-1] == ("rotate", f"root-key/{SECOND}")
    moved(house)
    text = (house.folder / "audit" / "warden.jsonl").read_text()
    assert f'"resource":"key/{key}/1"' in text.replace(" ", "")
    assert '"event":"moveKey"' in text.replace(" ", "")
    assert f'"resource":"root-key/{FIRST}"' in text.replace(" ", "")
    house.now += 26 * HOUR
    roots.destroy(house.call(name="destroy"), FIRST, lose_pins=True)
    assert house.records[-1] == ("destroy", f"root-key/{FIRST}")


def test_what_is_kept_nowhere_works_until_it_ends(house: House, tmp_path: Path) -> None:
    call = house.call
    key = keys.create_key(call(), alias="key").id
    waiting = keys.create_key(call(), alias="waiting", origin="external").id
    parameters = imports.parameters(call(), waiting)
    secret = access_keys.new_secret(house.core)
    old_pin, new_pin = first_pin(house), pins.create(call(), pins.CIPHER, "1")
    blobs = {pin: sealed(call(), key, pin) for pin in (old_pin, new_pin)}

    roots.rotate(call(), SECOND)
    moved(house)
    material = b"m" * 32
    house.now += 23 * HOUR
    imports.import_material(
        call(),
        waiting,
        import_token=parameters.token,
        material=oaep(tmp_path, parameters.public_key, material),
        private_key=b"",
        expires=None,
    )
    assert house.sql("SELECT root_label FROM key_versions WHERE key_id = ?", waiting) == [(SECOND,)]
    handle = with_token_key(
        house.token,
        secret.root_label,
        lambda root: house.token.unwrap(ACCESS_KEY, secret.wrapped, root),
    )
    assert house.token.hmac(handle, MESSAGE) == hmac.digest(secret.text.encode(), MESSAGE, "sha256")
    for pin, (plain, blob) in blobs.items():
        assert opened(call(), key, blob, pin) == plain

    reason = "import tokens and temporary access keys may need it for 2 hours more"
    refused(ROOT_KEY_REFUSED, lambda: roots.destroy(call(), FIRST, lose_pins=True), reason)
    house.now += 2 * HOUR
    refused(ROOT_KEY_REFUSED, lambda: roots.destroy(call(), FIRST), "PINs of the first format may need it")
    assert FIRST in house.token.labels()
    ended(house)
    plain, blob = blobs[new_pin]
    assert opened(call(), key, blob, new_pin) == plain
    refused(PARAMETER_INVALID, lambda: opened(call(), key, blobs[old_pin][1], old_pin), "was destroyed")
    assert house.token.status().state == "connected"


def test_a_new_store_has_made_no_pins_of_the_first_format(house: House) -> None:
    with house.core.store.write() as tx:
        rows.put_root_keys(tx, [rows.RootKey(FIRST, rows.CURRENT, "", 1)])
    roots.rotate(house.call(), SECOND)
    moved(house)
    house.now += 26 * HOUR
    assert roots.needs(house.call(), FIRST, lose_pins=False) == []
    ended(house, lose_pins=False)


def first_pin(house: House) -> str:
    """A PIN as the first format had it."""
    import base64

    wrapped = house.token.generate(pins._SECRET, house.token.find(FIRST))
    body = b"HSP\x01" + bytes((len(FIRST),)) + FIRST.encode() + wrapped
    place = (CALLER.domain_id, CALLER.project_id)
    return base64.b64encode(body + pins._mac(house.call(), pins._PURPOSE, place, body)).decode()


def sealed(call: Call, key: str, pin: str) -> tuple[bytes, bytes]:
    _, plain, blob = datakeys.create(call, key, "", 256, b"", pins.Pin(pin))
    return plain, blob


def opened(call: Call, key: str, blob: bytes, pin: str) -> bytes:
    return datakeys.decrypt(call, key, blob, len(blob), b"", pins.Pin(pin))[0]


# What is refused


def test_which_root_key_may_come_next(house: House) -> None:
    call = house.call
    for label in (
        "",
        "root",
        "hsmd-root-0",
        "hsmd-root-01",
        "hsmd-sealing",
        f"{SECOND} ",
        "hsmd-root-9999999999",
    ):
        refused(ROOT_KEY_REFUSED, lambda: roots.rotate(call(), label), f"{SECOND} is the next one")  # noqa: B023  # called at once
    assert states(house) == {FIRST: rows.CURRENT}
    assert roots.rotate(call(), FIRST).state == rows.CURRENT  # nothing to do
    house.token.make_root_key("hsmd-root-5")  # brought here
    assert roots.rotate(call(), "hsmd-root-5").label == "hsmd-root-5"
    refused(ROOT_KEY_REFUSED, lambda: roots.rotate(call(), SECOND), "hsmd-root-6 is the next one")
    refused(ROOT_KEY_REFUSED, lambda: roots.rotate(call(), FIRST))
    house.core.peers = {"elsewhere": object()}  # type: ignore[dict-item]  # nobody asks it
    refused(ROOT_KEY_REFUSED, lambda: roots.rotate(call(), "hsmd-root-6"), "into the HSMs of this region")
    assert "hsmd-root-6" not in house.token.labels()


def test_what_keeps_a_root_key(house: House) -> None:
    call = house.call
    key = keys.create_key(call(), alias="key").id
    refused(ROOT_KEY_REFUSED, lambda: roots.destroy(call(), FIRST), "it wraps what is new")
    refused(ROOT_KEY_REFUSED, lambda: roots.destroy(call(), SECOND), "there is none of this label")
    refused(ROOT_KEY_REFUSED, lambda: roots.destroy(call(), "hsmd-sealing"), "there is none of this label")
    roots.rotate(call(), SECOND)
    house.now += 26 * HOUR
    refused(ROOT_KEY_REFUSED, lambda: roots.destroy(call(), FIRST), "1 key versions have yet to be moved")
    moved(house)
    with house.core.store.write() as tx:  # as another region brings one that it has not moved yet
        version = key_rows.get_version(tx, key, 1)
        assert version is not None
        wrapped = house.token.rewrap(
            KEY_SPECS["AES_256"], version.wrapped or b"", house.token.find(SECOND), house.token.find(FIRST)
        )
        rewraps.put_row(tx, replace(version, wrapped=wrapped, root_label=FIRST))
    refused(ROOT_KEY_REFUSED, lambda: roots.destroy(call(), FIRST, lose_pins=True), "1 key versions")
    moved(house)
    ended(house)


def test_what_an_ending_root_key_has_wrapped_is_not_stored(house: House) -> None:
    call = house.call()
    drafts = [keys._new_key(call, alias, KEY_SPECS["AES_256"], "", "0") for alias in ("one", "two")]
    versions = [keys._new_version(call, each, KEY_SPECS["AES_256"]) for each in drafts]
    roots.rotate(house.call(), SECOND)
    with house.core.store.write() as tx:  # on its way when the root key was replaced: it is moved later
        key_rows.insert_key(tx, drafts[0], versions[0])
    moved(house)
    house.now += 26 * HOUR
    roots.destroy(house.call(), FIRST, lose_pins=True)
    assert house.rounds(jobs.ROOTS, count=1) == [0]  # calls on their way may need it
    assert FIRST in house.token.labels()

    def late() -> None:
        with house.core.store.write() as tx:
            key_rows.insert_key(tx, drafts[1], versions[1])

    refused(UNAVAILABLE, late, "the root key has been replaced meanwhile")
    house.now += roots.ENDING_MILLIS
    house.rounds(jobs.ROOTS)
    refused(UNAVAILABLE, late, "the root key has been replaced meanwhile")
    assert crypto.encrypt_data(house.call(), drafts[0].id, b"data", "", b"")[1]


def test_a_move_that_goes_wrong_changes_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [
        keys.create_key(house.call(), alias=each, spec=each).id for each in ("AES_256", "HMAC_256", "EC_P256")
    ]
    access = [f"key/{each}/1" for each in ids]
    roots.rotate(house.call(), SECOND)
    token, real = house.token, house.token.rewrap

    def another(row: Any, _wrapped: bytes, _old: Any, new: Any) -> bytes:
        return token.generate_pair(row, new).wrapped if row.asymmetric else token.generate(row, new)

    before = house.sql("SELECT * FROM key_versions ORDER BY key_id")
    monkeypatch.setattr(token, "rewrap", another)
    for name in access:
        with pytest.raises((LookupError, Error)):
            roots.move(house.call(), name)
    monkeypatch.setattr(token, "rewrap", real)
    assert house.sql("SELECT * FROM key_versions ORDER BY key_id") == before
    moved(house)
    assert labels(house) == {SECOND}


def test_a_broken_row_stands_before_no_other_and_keeps_its_root_key(house: House) -> None:
    ids = [keys.create_key(house.call(), alias=each).id for each in ("one", "two", "three")]
    house.sql("UPDATE key_versions SET seal = x'00' WHERE key_id = ?", ids[1])
    roots.rotate(house.call(), SECOND)
    trouble: dict[str, str] = {}
    work = jobs.Jobs(house.core, house.audit, "test")
    assert work.carry_out(jobs.MOVES, trouble) == 2
    assert list(trouble) == [f"key/{ids[1]}/1"]
    house.now += 26 * HOUR
    assert work.carry_out(jobs.ROOTS, trouble) == 0
    refused(ROOT_KEY_REFUSED, lambda: roots.destroy(house.call(), FIRST, lose_pins=True), "1 key versions")


def test_rows_that_change_while_they_are_moved(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call did meanwhile stands: an older row is not put back."""
    key = keys.create_key(house.call(), alias="key").id
    roots.rotate(house.call(), SECOND)
    real = roots._moved

    def meanwhile(core: Core, before: Any, label: str) -> bytes:
        made = real(core, before, label)
        with core.store.write() as tx:
            key_rows.destroy_versions(tx, key, house.now)
        return made

    monkeypatch.setattr(roots, "_moved", meanwhile)
    assert roots.move(house.call(), f"key/{key}/1") is False
    assert house.sql("SELECT wrapped FROM key_versions") == [(None,)]
    assert roots.due(house.call()) == []


def test_a_changed_document_is_noticed(house: House) -> None:
    roots.rotate(house.call(), SECOND)
    house.sql("UPDATE service_settings SET document = replace(document, 'hsmd-root-2', 'hsmd-root-1')")
    house.core.cache.evict_all()
    with pytest.raises(SealBroken):
        house.core.root_label()

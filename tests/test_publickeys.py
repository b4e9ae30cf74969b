"""Public keys that come from elsewhere: of the row that they are said to be of, and of no other."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsmd.algorithms import KEY_SPECS
from hsmd.domain import publickeys


def _der(private: object) -> bytes:
    public = private.public_key()  # type: ignore[attr-defined]  # every private key has one
    return bytes(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    return {
        "RSA_2048": _der(rsa.generate_private_key(65537, 2048)),
        "RSA_3072": _der(rsa.generate_private_key(65537, 3072)),
        "EC_P256": _der(ec.generate_private_key(ec.SECP256R1())),
        "EC_P384": _der(ec.generate_private_key(ec.SECP384R1())),
        "SECP256K1": _der(ec.generate_private_key(ec.SECP256K1())),
        "ED25519": _der(ed25519.Ed25519PrivateKey.generate()),
        "ML_DSA_44": _der(mldsa.MLDSA44PrivateKey.generate()),
        "ML_DSA_65": _der(mldsa.MLDSA65PrivateKey.generate()),
        "ML_DSA_87": _der(mldsa.MLDSA87PrivateKey.generate()),
    }


@pytest.mark.parametrize("name", [name for name, row in KEY_SPECS.items() if row.asymmetric])
def test_a_public_key_is_of_one_row(made: dict[str, bytes], name: str) -> None:
    fitting = {other for other, der in made.items() if publickeys.is_one(KEY_SPECS[name], der)}
    assert fitting == {name} & made.keys()


def test_others_are_of_none(made: dict[str, bytes]) -> None:
    strange = [
        b"",
        b"\x30",
        *(der[:-1] for der in made.values()),
        *(der + b"\0" for der in made.values()),
        _der(ec.generate_private_key(ec.SECP521R1())),
        _der(ec.generate_private_key(ec.BrainpoolP256R1())),
        _der(ed448.Ed448PrivateKey.generate()),
        _der(x25519.X25519PrivateKey.generate()),
        _der(rsa.generate_private_key(65537, 2056)),
    ]
    rows = [row for row in KEY_SPECS.values() if row.asymmetric]
    assert not [der for der in strange for row in rows if publickeys.is_one(row, der)]

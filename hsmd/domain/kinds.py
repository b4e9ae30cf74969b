"""Which key does what, by its spec and usage: every refusal of a key of the wrong kind, with DEW's codes.

    works with          AES_256   HMAC_*    RSA_*, EC, ED25519, ML_DSA_*
    data, data keys     yes       0341      data: RSA for ENCRYPT_DECRYPT, EC 1114; data keys: 0325
    signatures          1115      0341      for SIGN_VERIFY, by algorithms of its own: else 0332
    public key          0331      0341      yes
    MAC                 0331      yes       0325
    shared secret       0331      0341      EC for KEY_AGREEMENT

A key pair for another usage is refused by 0334 (ENCRYPT_DECRYPT), 0335 (SIGN_VERIFY) or, as DEW has no code
for KEY_AGREEMENT, 0308.
"""

from hsmd.algorithms import (
    AGREEMENT,
    DIGEST_BYTES,
    ENCRYPT_DECRYPT,
    KEY_SPECS,
    MAC,
    MAC_ALGORITHMS,
    SIGN_VERIFY,
    KeyAlgorithm,
    SignatureAlgorithm,
)
from hsmd.errors import (
    ALGORITHM_REFUSED,
    ASYMMETRIC_KEY_REFUSED,
    EC_KEY_REFUSED,
    HMAC_KEY_REFUSED,
    PARAMETER_INVALID,
    RSA_ALGORITHM_REFUSED,
    SIGNING_ALGORITHM_REFUSED,
    SYMMETRIC_DOES_NOT_SIGN,
    SYMMETRIC_KEY_REFUSED,
    USAGE_IS_AGREEMENT,
    USAGE_IS_ENCRYPTION,
    USAGE_IS_SIGNING,
    Error,
    Fault,
)
from hsmd.store.keys import Key

SYMMETRIC_DEFAULT, RSAES_OAEP = "SYMMETRIC_DEFAULT", "RSAES_OAEP_SHA_256"

_USAGE_FAULTS: dict[str, Fault] = {
    ENCRYPT_DECRYPT: USAGE_IS_ENCRYPTION,
    SIGN_VERIFY: USAGE_IS_SIGNING,
    AGREEMENT: USAGE_IS_AGREEMENT,
    MAC: HMAC_KEY_REFUSED,
}


def encrypting(key: Key, algorithm: str) -> KeyAlgorithm:
    """The row of a key that encrypts data by this algorithm ("" is SYMMETRIC_DEFAULT)."""
    row = _row(key)
    if row.kind in ("ec", "edwards"):
        raise Error(EC_KEY_REFUSED, key=key.id)
    _expect_usage(key, ENCRYPT_DECRYPT)
    if (algorithm or SYMMETRIC_DEFAULT) != (RSAES_OAEP if row.asymmetric else SYMMETRIC_DEFAULT):
        raise Error(RSA_ALGORITHM_REFUSED if row.asymmetric else ALGORITHM_REFUSED)
    return row


def wrapping(key: Key) -> Key:
    """The key itself when it encrypts data keys: symmetric ones alone do."""
    if _row(key).asymmetric:
        raise Error(ASYMMETRIC_KEY_REFUSED, key=key.id)
    _expect_usage(key, ENCRYPT_DECRYPT)
    return key


def signing(key: Key, algorithm: SignatureAlgorithm) -> KeyAlgorithm:
    """The row of a key that signs by this algorithm."""
    row = _row(key)
    if row.kind == "aes":
        raise Error(SYMMETRIC_DOES_NOT_SIGN, key=key.id)
    _expect_usage(key, SIGN_VERIFY)
    if algorithm.kind != row.kind or (algorithm.bits and row.bits not in algorithm.bits):
        raise Error(SIGNING_ALGORITHM_REFUSED, key=key.id, algorithm=algorithm.name, spec=row.name)
    return row


def public(key: Key) -> Key:
    """The key itself when it is a pair."""
    row = _row(key)
    if not row.asymmetric:
        raise Error(SYMMETRIC_KEY_REFUSED if row.kind == "aes" else HMAC_KEY_REFUSED, key=key.id)
    return key


def authenticating(key: Key, algorithm: str) -> str:
    """The hash of the key's MACs; each HMAC key has one algorithm, that of its own length."""
    row = _row(key)
    if row.kind != "generic-secret":
        raise Error(ASYMMETRIC_KEY_REFUSED if row.asymmetric else SYMMETRIC_KEY_REFUSED, key=key.id)
    hash_name = MAC_ALGORITHMS[algorithm]
    if 8 * DIGEST_BYTES[hash_name] != row.bits:
        reason = f"HMAC_SHA_{row.bits} is due for {row.name}"
        raise Error(PARAMETER_INVALID, name="mac_algorithm", reason=reason)
    return hash_name


def agreeing(key: Key) -> KeyAlgorithm:
    """The row of a key that derives shared secrets."""
    row = _row(key)
    if row.kind == "aes":
        raise Error(SYMMETRIC_KEY_REFUSED, key=key.id)
    _expect_usage(key, AGREEMENT)
    return row


def _row(key: Key) -> KeyAlgorithm:
    return KEY_SPECS[key.spec]


def _expect_usage(key: Key, usage: str) -> None:
    if key.usage != usage:
        raise Error(_USAGE_FAULTS[key.usage], key=key.id)

"""Frozen rows: what each DEW key spec means for the token, the blobs and the API. Code looks up."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class KeyAlgorithm:
    """A kind of key that a CMK version or an access key can be.

    `name` is the DEW spelling, `number` stands in ciphertext headers and never changes its meaning,
    `kind` names the token's key type, `bits` the size. `usages` holds DEW key usages, default first.
    """

    name: str
    number: int
    kind: Literal["aes", "generic-secret"]
    bits: int
    usages: tuple[str, ...]


AES_256 = KeyAlgorithm("AES_256", 1, "aes", 256, ("ENCRYPT_DECRYPT",))

# What the API offers for CMKs, by DEW name.
KEY_SPECS: dict[str, KeyAlgorithm] = {row.name: row for row in (AES_256,)}

# An access key's secret: 40 characters, used as they are as the HMAC-SHA-256 key of request signatures.
ACCESS_KEY = KeyAlgorithm("ACCESS_KEY", 200, "generic-secret", 320, ("SIGN",))

BY_NAME: dict[str, KeyAlgorithm] = {**KEY_SPECS, ACCESS_KEY.name: ACCESS_KEY}

# Data keys by DEW key_spec, in bits.
DATA_KEY_BITS: dict[str, int] = {
    "AES_256": 256,
    "AES_128": 128,
    "HMAC_256": 256,
    "HMAC_384": 384,
    "HMAC_512": 512,
}

# NIST SP 800-38D, 8.3: at most 2^32 invocations with random 96-bit IVs under one key.
GCM_MESSAGES_PER_VERSION = 1 << 32

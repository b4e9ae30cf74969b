"""Frozen rows: what each DEW key spec and algorithm means for token, blobs and API. Code looks up."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["aes", "generic-secret", "rsa", "ec", "edwards", "ml-dsa"]
Hash = Literal["", "sha256", "sha384", "sha512"]
Scheme = Literal["pkcs1", "pss", "ecdsa", "eddsa", "ml-dsa"]

ENCRYPT_DECRYPT, SIGN_VERIFY, MAC, AGREEMENT = (
    "ENCRYPT_DECRYPT",
    "SIGN_VERIFY",
    "GENERATE_VERIFY_MAC",
    "KEY_AGREEMENT",
)


@dataclass(frozen=True, slots=True)
class KeyAlgorithm:
    """A kind of key that a CMK version or an access key can be.

    `name` is the DEW spelling, `number` stands in ciphertext headers and never changes its meaning,
    `kind` names the token's key type, `bits` the size (of the modulus, the field, the secret; the parameter
    set for ML-DSA: 44, 65, 87). `usages` holds DEW key usages, default first. `curve` is the DER of
    CKA_EC_PARAMS (an OBJECT IDENTIFIER, RFC 5480 and RFC 8410), b"" where there is none.
    """

    name: str
    number: int
    kind: Kind
    bits: int
    usages: tuple[str, ...]
    curve: bytes = b""

    @property
    def asymmetric(self) -> bool:
        """Whether it is a key pair."""
        return self.kind not in ("aes", "generic-secret")


AES_256 = KeyAlgorithm("AES_256", 1, "aes", 256, (ENCRYPT_DECRYPT,))

_RSA = (SIGN_VERIFY, ENCRYPT_DECRYPT)
_EC = (SIGN_VERIFY, AGREEMENT)

# What the API offers for CMKs, by DEW name.
KEY_SPECS: dict[str, KeyAlgorithm] = {
    row.name: row
    for row in (
        AES_256,
        KeyAlgorithm("RSA_2048", 2, "rsa", 2048, _RSA),
        KeyAlgorithm("RSA_3072", 3, "rsa", 3072, _RSA),
        KeyAlgorithm("RSA_4096", 4, "rsa", 4096, _RSA),
        KeyAlgorithm("EC_P256", 5, "ec", 256, _EC, bytes.fromhex("06082a8648ce3d030107")),
        KeyAlgorithm("EC_P384", 6, "ec", 384, _EC, bytes.fromhex("06052b81040022")),
        KeyAlgorithm("SECP256K1", 7, "ec", 256, _EC, bytes.fromhex("06052b8104000a")),
        KeyAlgorithm("ED25519", 8, "edwards", 256, (SIGN_VERIFY,), bytes.fromhex("06032b6570")),
        KeyAlgorithm("HMAC_256", 9, "generic-secret", 256, (MAC,)),
        KeyAlgorithm("HMAC_384", 10, "generic-secret", 384, (MAC,)),
        KeyAlgorithm("HMAC_512", 11, "generic-secret", 512, (MAC,)),
        KeyAlgorithm("ML_DSA_44", 12, "ml-dsa", 44, (SIGN_VERIFY,)),
        KeyAlgorithm("ML_DSA_65", 13, "ml-dsa", 65, (SIGN_VERIFY,)),
        KeyAlgorithm("ML_DSA_87", 14, "ml-dsa", 87, (SIGN_VERIFY,)),
    )
}

# An access key's secret: 40 characters, used as they are as the HMAC-SHA-256 key of request signatures.
ACCESS_KEY = KeyAlgorithm("ACCESS_KEY", 200, "generic-secret", 320, (MAC,))

# Key pairs that are given away as data key pairs, by DEW key_spec; P-521 is for these alone.
EC_P521 = KeyAlgorithm("EC_P521", 201, "ec", 521, (), bytes.fromhex("06052b81040023"))
DATA_KEY_PAIRS: dict[str, KeyAlgorithm] = {
    **{name: row for name, row in KEY_SPECS.items() if row.kind in ("rsa", "ec")},
    EC_P521.name: EC_P521,
}

BY_NAME: dict[str, KeyAlgorithm] = {**KEY_SPECS, ACCESS_KEY.name: ACCESS_KEY}


@dataclass(frozen=True, slots=True)
class SignatureAlgorithm:
    """A DEW signing_algorithm: which keys can do it, over which hash ("" where the scheme hashes itself)."""

    name: str
    kind: Kind
    scheme: Scheme
    hash: Hash
    bits: tuple[int, ...] = ()  # key sizes that it goes with; empty: all of the kind


DIGEST_BYTES: dict[str, int] = {"sha256": 32, "sha384": 48, "sha512": 64}

SIGNATURE_ALGORITHMS: dict[str, SignatureAlgorithm] = {
    row.name: row
    for row in (
        SignatureAlgorithm("RSASSA_PSS_SHA_256", "rsa", "pss", "sha256"),
        SignatureAlgorithm("RSASSA_PSS_SHA_384", "rsa", "pss", "sha384"),
        SignatureAlgorithm("RSASSA_PSS_SHA_512", "rsa", "pss", "sha512"),
        SignatureAlgorithm("RSASSA_PKCS1_V1_5_SHA_256", "rsa", "pkcs1", "sha256"),
        SignatureAlgorithm("RSASSA_PKCS1_V1_5_SHA_384", "rsa", "pkcs1", "sha384"),
        SignatureAlgorithm("RSASSA_PKCS1_V1_5_SHA_512", "rsa", "pkcs1", "sha512"),
        SignatureAlgorithm("ECDSA_SHA_256", "ec", "ecdsa", "sha256"),
        SignatureAlgorithm("ECDSA_SHA_384", "ec", "ecdsa", "sha384"),
        SignatureAlgorithm("ECDSA_SHA_512", "ec", "ecdsa", "sha512"),
        SignatureAlgorithm("ED25519_SHA_512", "edwards", "eddsa", ""),
        SignatureAlgorithm("ML_DSA", "ml-dsa", "ml-dsa", ""),
    )
}

# DEW mac_algorithm by name: the hash.
MAC_ALGORITHMS: dict[str, Hash] = {
    "HMAC_SHA_256": "sha256",
    "HMAC_SHA_384": "sha384",
    "HMAC_SHA_512": "sha512",
}

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

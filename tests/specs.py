"""Keys of every spec that the token can do, made once, for tests of what they do."""

from dataclasses import dataclass, field

import pytest

from hsmd.client import Client
from tests.calls import fresh

# DEW's key specs with their usages, default first. Written out here, not taken from the product.
USAGES: dict[str, tuple[str, ...]] = {
    "AES_256": ("ENCRYPT_DECRYPT",),
    "RSA_2048": ("SIGN_VERIFY", "ENCRYPT_DECRYPT"),
    "RSA_3072": ("SIGN_VERIFY", "ENCRYPT_DECRYPT"),
    "RSA_4096": ("SIGN_VERIFY", "ENCRYPT_DECRYPT"),
    "EC_P256": ("SIGN_VERIFY", "KEY_AGREEMENT"),
    "EC_P384": ("SIGN_VERIFY", "KEY_AGREEMENT"),
    "SECP256K1": ("SIGN_VERIFY", "KEY_AGREEMENT"),
    "ED25519": ("SIGN_VERIFY",),
    "HMAC_256": ("GENERATE_VERIFY_MAC",),
    "HMAC_384": ("GENERATE_VERIFY_MAC",),
    "HMAC_512": ("GENERATE_VERIFY_MAC",),
    "ML_DSA_44": ("SIGN_VERIFY",),
    "ML_DSA_65": ("SIGN_VERIFY",),
    "ML_DSA_87": ("SIGN_VERIFY",),
}
OPTIONAL = ("ED25519", "ML_DSA_44", "ML_DSA_65", "ML_DSA_87")  # what SoftHSM2 2.6.1 lacks


@dataclass
class Keys:
    """Makes keys on demand; a test that asks for one the token can't do is skipped."""

    client: Client
    available: frozenset[str]
    _made: dict[tuple[str, str], str] = field(default_factory=dict)

    def can(self, spec: str) -> bool:
        return spec not in OPTIONAL or spec in self.available

    def __call__(self, spec: str, usage: str = "") -> str:
        if not self.can(spec):
            pytest.skip(f"the token can't do {spec}")
        usage = usage or USAGES[spec][0]
        if (spec, usage) not in self._made:
            self._made[spec, usage] = self.client.create_key(fresh("spec"), spec=spec, usage=usage)
        return self._made[spec, usage]

    def of_every_kind(self) -> dict[tuple[str, str], str]:
        """One key of each kind and usage, by spec and usage."""
        specs = ["AES_256", "RSA_2048", "EC_P256", "HMAC_256", *(each for each in OPTIONAL if self.can(each))]
        return {(spec, usage): self(spec, usage) for spec in specs for usage in USAGES[spec]}

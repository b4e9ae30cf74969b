"""What objects in the token are allowed to do: every template in one place.

Each names every capability, the refused ones too, since tokens grant what a template leaves out.
"""

from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

from hsmd.algorithms import KeyAlgorithm
from hsmd.hsm.module import Template

_CAPABILITIES = (
    Attribute.ENCRYPT,
    Attribute.DECRYPT,
    Attribute.SIGN,
    Attribute.VERIFY,
    Attribute.WRAP,
    Attribute.UNWRAP,
    Attribute.DERIVE,
)
_CIPHER = (Attribute.ENCRYPT, Attribute.DECRYPT)
_MAC = (Attribute.SIGN, Attribute.VERIFY)
_WRAP = (Attribute.WRAP, Attribute.UNWRAP)

_TYPES = {"aes": KeyType.AES, "generic-secret": KeyType.GENERIC_SECRET}
_USES = {"aes": _CIPHER, "generic-secret": _MAC}
GENERATORS = {"aes": Mechanism.AES_KEY_GEN, "generic-secret": Mechanism.GENERIC_SECRET_KEY_GEN}

# RFC 5649 under its own number, and under the one older tokens know it by (where others mean PKCS#7 padding):
# the probe takes the first that passes a known-answer test.
KEY_WRAPS = (Mechanism.AES_KEY_WRAP_KWP, Mechanism.AES_KEY_WRAP_PAD)


def secret(
    kind: str,
    uses: tuple[Attribute, ...],
    *,
    extractable: bool = False,
    more: dict[Attribute, object] | None = None,
) -> Template:
    """A private, sensitive secret key that may do what `uses` names and nothing else; of this session."""
    return Template(
        {
            Attribute.CLASS: ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: _TYPES[kind],
            Attribute.TOKEN: False,
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: extractable,
            **{capability: capability in uses for capability in _CAPABILITIES},
            **(more or {}),
        }
    )


def newborn(row: KeyAlgorithm) -> Template:
    """A key that lives only until it is wrapped: extractable, and of no other use."""
    return secret(row.kind, (), extractable=True, more={Attribute.VALUE_LEN: row.bits // 8})


def imported(row: KeyAlgorithm, value: bytes) -> Template:
    """The same for a value from outside."""
    return secret(row.kind, (), extractable=True, more={Attribute.VALUE: value})


def at_work(row: KeyAlgorithm) -> Template:
    """An unwrapped key at its work; it can't be taken out again."""
    return _AT_WORK[row.kind]


def root_key(label: str) -> Template:
    """A token object that wraps and unwraps keys, nothing else."""
    return secret("aes", _WRAP, more={**_token_object(label), Attribute.VALUE_LEN: 32})


def hmac_key(label: str) -> Template:
    """A token object that makes HMACs."""
    return secret("generic-secret", _MAC, more={**_token_object(label), Attribute.VALUE_LEN: 32})


def trial(kind: str, value: bytes) -> Template:
    """A throw-away key of known value for the probe, able to do all its kind can."""
    uses = (*_CIPHER, *_WRAP) if kind == "aes" else _MAC
    return secret(kind, uses, extractable=True, more={Attribute.VALUE: value})


def _token_object(label: str) -> dict[Attribute, object]:
    return {Attribute.TOKEN: True, Attribute.LABEL: label, Attribute.ID: label.encode()}


_AT_WORK = {kind: secret(kind, uses) for kind, uses in _USES.items()}
PULSE = secret("generic-secret", _MAC, more={Attribute.VALUE_LEN: 32})
TRIAL_UNWRAPPED = secret("aes", _CIPHER, extractable=True)

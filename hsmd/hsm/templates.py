"""What objects in the token are allowed to do: every template in one place.

Each names every capability, the refused ones too, since tokens grant what a template leaves out.
"""

from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.mechanisms import MLDSAParameterSet

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
# What a private key can be allowed; SoftHSM2 refuses a template that names more.
_PRIVATE_CAPABILITIES = (
    Attribute.DECRYPT,
    Attribute.SIGN,
    Attribute.SIGN_RECOVER,
    Attribute.UNWRAP,
    Attribute.DERIVE,
)
_PUBLIC_CAPABILITIES = (Attribute.ENCRYPT, Attribute.VERIFY, Attribute.WRAP)
_CIPHER = (Attribute.ENCRYPT, Attribute.DECRYPT)
_MAC = (Attribute.SIGN, Attribute.VERIFY)
_WRAP = (Attribute.WRAP, Attribute.UNWRAP)

_TYPES = {"aes": KeyType.AES, "generic-secret": KeyType.GENERIC_SECRET}
_USES = {"aes": _CIPHER, "generic-secret": _MAC}
_PAIR_TYPES = {
    "rsa": KeyType.RSA,
    "ec": KeyType.EC,
    "edwards": KeyType.EC_EDWARDS,
    "ml-dsa": KeyType.ML_DSA,
}
_PAIR_USES = {
    "rsa": (Attribute.SIGN, Attribute.DECRYPT, Attribute.UNWRAP),
    "ec": (Attribute.SIGN, Attribute.DERIVE),
    "edwards": (Attribute.SIGN,),
    "ml-dsa": (Attribute.SIGN,),
}
PAIR_GENERATORS = {
    "rsa": Mechanism.RSA_PKCS_KEY_PAIR_GEN,
    "ec": Mechanism.EC_KEY_PAIR_GEN,
    "edwards": Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
    "ml-dsa": Mechanism.ML_DSA_KEY_PAIR_GEN,
}
# What CKA_EC_PARAMS of Ed25519 may be: the OBJECT IDENTIFIER of RFC 8410, or the name (PKCS#11 3.0, 2.3.3).
EDWARDS_CURVES = (bytes.fromhex("06032b6570"), b"\x13\x0cedwards25519")
GENERATORS = {"aes": Mechanism.AES_KEY_GEN, "generic-secret": Mechanism.GENERIC_SECRET_KEY_GEN}

# RFC 5649 under its own number, and under the one older tokens know it by (where others mean PKCS#7 padding):
# the probe takes the first that passes a known-answer test.
KEY_WRAPS = (Mechanism.AES_KEY_WRAP_KWP, Mechanism.AES_KEY_WRAP_PAD)


def secret(
    kind: str,
    uses: tuple[Attribute, ...],
    *,
    extractable: bool | None = False,
    more: dict[Attribute, object] | None = None,
) -> Template:
    """A private, sensitive secret key that may do what `uses` names and nothing else; of this session.

    `extractable`: None leaves it to the token.
    """
    return Template(
        {
            Attribute.CLASS: ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: _TYPES[kind],
            Attribute.TOKEN: False,
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: True,
            **({} if extractable is None else {Attribute.EXTRACTABLE: extractable}),
            **{capability: capability in uses for capability in _CAPABILITIES},
            **(more or {}),
        }
    )


def private(
    kind: str,
    uses: tuple[Attribute, ...],
    *,
    extractable: bool | None = False,
    more: dict[Attribute, object] | None = None,
) -> Template:
    """A sensitive private key that may do what `uses` names and nothing else; of this session.

    `extractable`: as with secret.
    """
    return Template(
        {
            Attribute.CLASS: ObjectClass.PRIVATE_KEY,
            Attribute.KEY_TYPE: _PAIR_TYPES[kind],
            Attribute.TOKEN: False,
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: True,
            **({} if extractable is None else {Attribute.EXTRACTABLE: extractable}),
            **{capability: capability in uses for capability in _PRIVATE_CAPABILITIES},
            **(more or {}),
        }
    )


def newborn_public(row: KeyAlgorithm, curve: bytes) -> Template:
    """The public half of a pair to be, which says what is made. `curve`: CKA_EC_PARAMS for this token."""
    return Template(
        {
            Attribute.CLASS: ObjectClass.PUBLIC_KEY,
            Attribute.KEY_TYPE: _PAIR_TYPES[row.kind],
            Attribute.TOKEN: False,
            Attribute.PRIVATE: False,
            **dict.fromkeys(_PUBLIC_CAPABILITIES, False),
            **_size(row, curve),
        }
    )


def _size(row: KeyAlgorithm, curve: bytes) -> dict[Attribute, object]:
    if row.kind == "rsa":
        return {Attribute.MODULUS_BITS: row.bits, Attribute.PUBLIC_EXPONENT: b"\x01\x00\x01"}
    if row.kind == "ml-dsa":
        return {Attribute.PARAMETER_SET: MLDSAParameterSet[f"ML_DSA_{row.bits}"]}
    return {Attribute.EC_PARAMS: curve}


def newborn_private(row: KeyAlgorithm) -> Template:
    """The private half: lives only until it is wrapped, extractable and of no other use."""
    return _NEWBORN_PRIVATE[row.kind]


def candidate(row: KeyAlgorithm, *, said: bool) -> Template:
    """An imported private key that has yet to be looked at and wrapped. `said`: see trial_unwrapped."""
    return _CANDIDATES[row.kind, said]


def agreed(size: int) -> Template:
    """A shared secret, which is there to be read."""
    return Template(
        {
            Attribute.CLASS: ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: KeyType.GENERIC_SECRET,
            Attribute.TOKEN: False,
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: False,
            Attribute.EXTRACTABLE: True,
            **dict.fromkeys(_CAPABILITIES, False),
            Attribute.VALUE_LEN: size,
        }
    )


def unwrapper(value: bytes) -> Template:
    """An AES key of known value that unwraps, nothing else."""
    return secret("aes", (Attribute.UNWRAP,), more={Attribute.VALUE: value})


def wrapper(value: bytes) -> Template:
    """An AES key of known value that wraps, nothing else."""
    return secret("aes", (Attribute.WRAP,), more={Attribute.VALUE: value})


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


def kept(row: KeyAlgorithm, label: str) -> Template:
    """A key that stays in the token, at work there: the secret, or the private half of a pair."""
    more = _token_object(label)
    if row.asymmetric:
        return private(row.kind, _PAIR_USES[row.kind], more=more)
    return secret(row.kind, _USES[row.kind], more={**more, Attribute.VALUE_LEN: row.bits // 8})


def is_kept(label: str, row: KeyAlgorithm | None = None) -> Template:
    """What such a key is found by; without a row, all objects of that label."""
    kind = ObjectClass.PRIVATE_KEY if row and row.asymmetric else ObjectClass.SECRET_KEY
    return Template({**({Attribute.CLASS: kind} if row else {}), **_token_object(label)})


def hmac_key(label: str) -> Template:
    """A token object that makes HMACs."""
    return secret("generic-secret", _MAC, more={**_token_object(label), Attribute.VALUE_LEN: 32})


def signing_pair(label: str, curve: bytes, *, extractable: bool) -> tuple[Template, Template]:
    """Both halves of an EC pair that stays in the token and signs, nothing else."""
    public = {
        Attribute.CLASS: ObjectClass.PUBLIC_KEY,
        Attribute.KEY_TYPE: _PAIR_TYPES["ec"],
        Attribute.PRIVATE: False,
        **_token_object(label),
        **{capability: capability is Attribute.VERIFY for capability in _PUBLIC_CAPABILITIES},
        Attribute.EC_PARAMS: curve,
    }
    more = _token_object(label)
    return Template(public), private("ec", (Attribute.SIGN,), extractable=extractable, more=more)


def signing_half(label: str, kind: ObjectClass) -> Template:
    """What one half of such a pair is found by."""
    return Template({Attribute.CLASS: kind, Attribute.KEY_TYPE: _PAIR_TYPES["ec"], **_token_object(label)})


def trial(kind: str, value: bytes) -> Template:
    """A throw-away key of known value for the probe, able to do all its kind can."""
    uses = (*_CIPHER, *_WRAP) if kind == "aes" else _MAC
    return secret(kind, uses, extractable=True, more={Attribute.VALUE: value})


def candidate_secret(*, said: bool) -> Template:
    """An imported secret that has yet to be looked at and wrapped: as bytes of no kind, which wrap alike."""
    return _CANDIDATE_SECRET[said]


def trial_unwrapped(*, said: bool) -> Template:
    """An AES key that comes in wrapped and can be wrapped again.

    That is `said` by CKA_EXTRACTABLE, or left out, as the token takes it: some make every unwrapped key
    extractable and refuse to be told.
    """
    return _TRIAL_UNWRAPPED[said]


def _token_object(label: str) -> dict[Attribute, object]:
    return {Attribute.TOKEN: True, Attribute.LABEL: label, Attribute.ID: label.encode()}


_AT_WORK = {
    **{kind: secret(kind, uses) for kind, uses in _USES.items()},
    **{kind: private(kind, uses) for kind, uses in _PAIR_USES.items()},
}
_NEWBORN_PRIVATE = {kind: private(kind, (), extractable=True) for kind in _PAIR_USES}
_CANDIDATES = {
    (kind, said): private(kind, uses, extractable=said or None)
    for kind, uses in _PAIR_USES.items()
    for said in (True, False)
}
UNWRAPPER = secret("aes", (Attribute.UNWRAP,))
# Said of an unwrapped key afterwards, to tokens that don't listen while unwrapping.
CONFINED = Template({Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False})
PULSE = secret("generic-secret", _MAC, more={Attribute.VALUE_LEN: 32})
_CANDIDATE_SECRET = {said: secret("generic-secret", (), extractable=said or None) for said in (True, False)}
_TRIAL_UNWRAPPED = {said: secret("aes", _CIPHER, extractable=said or None) for said in (True, False)}

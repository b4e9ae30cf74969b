"""PINs: a second secret for a data key, without which the CMK alone does not open it (docs/decisions/0011).

A plaintext PIN is any text of 8 to 128 printable characters; create-pin makes one up. A ciphertext PIN stands
for a secret that nobody knows, since only the HSM makes it, and is good for the data keys of one project:

    offset  bytes  field
    0       4      magic and format version
    4       32     random bytes: the secret is the HMAC by the credential key, in the HSM, over them
    -32     32     the same key's HMAC for another purpose, over domain, project and all before

The first format held the secret itself, wrapped by a root key; that one's label, behind its length, stood
before it. PINs are kept nowhere. Data keys are bound to them for ever, so old magics are read for ever; those
of the first format as long as their root key is there.
"""

import base64
import binascii
import hashlib
import hmac
import string
from dataclasses import dataclass, field

from hsmd.algorithms import KEY_SPECS
from hsmd.domain.core import CREDENTIAL_KEY_LABEL, Call
from hsmd.errors import KEYSTORE_REFUSED, PARAMETER_INVALID, PARAMETER_MISSING, Error
from hsmd.hsm import BadData, Handle
from hsmd.keyring import with_token_key
from hsmd.store import roots
from hsmd.store.keys import Key

PLAIN, CIPHER = "PlainText", "CipherText"


@dataclass(frozen=True, slots=True)
class Pin:
    """A PIN as it came: `kind` is DEW's pin_type, "" for CipherText; no `text`, no PIN."""

    text: str = field(default="", repr=False)
    kind: str = ""


NO_PIN = Pin()

_KEYSTORES = ("0", "1", "2")  # 0 is ours; the others are DEW's shared ones, whose part this HSM plays
_LENGTHS = range(8, 129)
_MADE_CHARACTERS = 20
_ALPHABET = string.ascii_letters + string.digits
_SECRET = KEY_SPECS["HMAC_256"]
_MAGIC, _FIRST_MAGIC = b"HSP\x02", b"HSP\x01"
_RANDOM_BYTES = 32
_PURPOSE = b"hsmd pin\0"
_PROOF = b"hsmd pin proof\0"
_USE = b"hsmd data key of this pin"
_MAC_BYTES = 32


def create(call: Call, pin_type: str, keystore_id: str) -> str:
    """A new PIN; "" is a CipherText, which needs a keystore. DEW: create-pin."""
    if keystore_id and keystore_id not in _KEYSTORES:
        raise Error(KEYSTORE_REFUSED, reason=f"PINs are made by {', '.join(_KEYSTORES)}")
    if pin_type == PLAIN:
        return _made_up(call)
    if not keystore_id:
        raise Error(PARAMETER_MISSING, name="keystore_id")
    body = _MAGIC + call.core.token.random(_RANDOM_BYTES)
    place = (call.caller.domain_id, call.caller.project_id)
    return base64.b64encode(body + _mac(call, _PURPOSE, place, body)).decode()


def binding(call: Call, key: Key, pin: Pin) -> bytes:
    """What GCM binds of a data key's PIN; b"" where there is none.

    Raises Error(PARAMETER_INVALID) for what is no PIN.
    """
    if not pin.text:
        if pin.kind:
            raise Error(PARAMETER_INVALID, name="pin_type", reason="it goes with a pin")
        return b""
    if pin.kind not in ("", PLAIN, CIPHER):
        raise Error(PARAMETER_INVALID, name="pin_type", reason=f"{PLAIN} or {CIPHER} is due")
    if pin.kind == PLAIN:
        if len(pin.text) not in _LENGTHS or not pin.text.isprintable():
            reason = f"{_LENGTHS.start} to {_LENGTHS.stop - 1} printable characters are due"
            raise Error(PARAMETER_INVALID, name="pin", reason=reason)
        return b"plain pin\0" + hashlib.sha256(pin.text.encode()).digest()
    return b"cipher pin\0" + _proof(call, key, pin.text)


def _made_up(call: Call) -> str:
    """Letters and digits, each as likely: bytes beyond a multiple of their number are left out."""
    limit = 256 - 256 % len(_ALPHABET)
    made = ""
    while len(made) < _MADE_CHARACTERS:
        made += "".join(
            _ALPHABET[each % len(_ALPHABET)] for each in call.core.token.random(32) if each < limit
        )
    return made[:_MADE_CHARACTERS]


def _proof(call: Call, key: Key, pin: str) -> bytes:
    """What only the HSM can make of a ciphertext PIN that was made for the key's project."""
    try:
        blob = binascii.a2b_base64(pin, strict_mode=True)
    except ValueError:
        raise _unfit() from None
    body, mac = blob[:-_MAC_BYTES], blob[-_MAC_BYTES:]
    place = (key.domain_id, key.project_id)
    if not hmac.compare_digest(_mac(call, _PURPOSE, place, body), mac):
        raise _unfit()
    if body.startswith(_FIRST_MAGIC):
        return _first_proof(call, body)
    return _mac(call, _PROOF, place, body)


def _first_proof(call: Call, body: bytes) -> bytes:
    """Of the first format: a secret that a root key has wrapped."""
    token, start = call.core.token, len(_FIRST_MAGIC) + 1
    size = body[start - 1]
    label, wrapped = body[start:][:size].decode(), body[start + size :]
    if any(each.label == label and each.state == roots.DESTROYED for each in call.core.root_keys()):
        raise Error(PARAMETER_INVALID, name="pin", reason="the root key that it needs was destroyed")

    def prove(root: Handle) -> bytes:
        secret = token.unwrap(_SECRET, wrapped, root)
        try:
            return token.hmac(secret, _USE)
        finally:
            token.destroy(secret)

    try:
        return with_token_key(token, label, prove)
    except BadData as error:  # ours by its MAC: the HSM has another root key of that name
        raise LookupError(f"a PIN is not wrapped by {label}") from error


def _mac(call: Call, purpose: bytes, place: tuple[str, str], body: bytes) -> bytes:
    token = call.core.token
    data = purpose + "\0".join((*place, "")).encode() + body
    return with_token_key(token, CREDENTIAL_KEY_LABEL, lambda handle: token.hmac(handle, data))


def _unfit() -> Error:
    return Error(PARAMETER_INVALID, name="pin", reason="none that create-pin made for the key's project")

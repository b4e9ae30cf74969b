"""What an access point signs to open a capsule: the same bytes for who signs and for who checks."""

import hashlib

_PURPOSE = "hsmd capsule attestation 1"


def statement(expire_time: str, capsule: bytes, public_key: str) -> bytes:
    """The bytes to sign, by ECDSA over SHA-256: four lines, each ended by a line feed.

    All as the request has it, `public_key` as its text, "" where there is none. The capsule names its key and
    is good in its project only, so they need no lines of their own.
    """
    digests = (hashlib.sha256(data).hexdigest() for data in (capsule, public_key.encode()))
    return "".join(f"{line}\n" for line in (_PURPOSE, expire_time, *digests)).encode()

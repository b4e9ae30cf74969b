"""The decoding of RSAES-OAEP: held against its definition (RFC 8017, 7.1.1), and its refusals."""

import secrets
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsmd.hsm import BadData
from hsmd.hsm.oaep import decode

_LABEL = sha256(b"").digest()


def mask(seed: bytes, size: int) -> bytes:
    made = b""
    while len(made) < size:
        made += sha256(seed + (len(made) // 32).to_bytes(4, "big")).digest()
    return made[:size]


def xor(left: bytes, right: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(left, right, strict=True))


def encode(block: bytes, seed: bytes, first: int = 0) -> bytes:
    """Encode a data block: hash of the label, zeros, one, message."""
    masked = xor(block, mask(seed, len(block)))
    return bytes([first]) + xor(seed, mask(masked, 32)) + masked


def block(message: bytes, size: int) -> bytes:
    return _LABEL + bytes(size - 66 - len(message)) + b"\1" + message


@given(st.sampled_from([256, 384, 512]), st.data())
def test_decodes_what_was_encoded(size: int, data: st.DataObject) -> None:
    message = data.draw(st.binary(max_size=size - 66))
    seed = data.draw(st.binary(min_size=32, max_size=32))
    assert decode(encode(block(message, size), seed)) == message


@pytest.mark.parametrize("size", [256, 384, 512])
def test_every_flaw_has_one_answer(size: int) -> None:
    good, seed = block(b"message", size), secrets.token_bytes(32)
    flawed = [
        *(encode(good, seed, first) for first in (1, 2, 128, 255)),
        *(
            encode(good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :], seed)
            for at in range(size - 40)
            for flip in (2, 128, 255)
        ),
        encode(_LABEL + bytes(size - 65), seed),  # no end of the padding
        encode(_LABEL + b"\2" * (size - 65), seed),
        encode(_LABEL + bytes(size - 66) + b"\2", seed),
        bytes(size),
        b"\xff" * size,
    ]
    answers = set()
    for bad in flawed:
        with pytest.raises(BadData) as refused:
            decode(bad)
        answers.add(str(refused.value))
    assert len(answers) == 1


@given(st.binary(min_size=256, max_size=256))
def test_noise_is_no_message(noise: bytes) -> None:
    with pytest.raises(BadData):
        decode(noise)

"""Every fault of PKCS#11 in one table: whose it is decides what happens next.

    BadData       the caller's: the data, ciphertext or wrapped key is not what it should be
    ObjectGone    the object's: its handle is no longer valid; unwrap again and repeat once
    Error         UNAVAILABLE while the token is away or does not answer; INTERNAL for a wrong use of it
    TokenRefused  at connecting: nobody should try again before something was changed

The table is total over the exception classes of python-pkcs11 and knows the return values behind them,
since functions called past that library (`module.py`) answer in numbers. Never decide by message text.
"""

from enum import Enum, auto

from pkcs11 import exceptions as p11


class BadData(Exception):  # noqa: N818 -- named for what is found
    """The data can't be decrypted or unwrapped with this key: changed, cut, or another key's."""


class WrongSize(BadData):
    """It can be decrypted, and is not as long as a key of this kind."""


class ObjectGone(Exception):  # noqa: N818 -- named for what is found
    """The handle's object is no longer there, though the token is; or it belongs to a lost connection."""


class TokenRefused(Exception):  # noqa: N818 -- named for what is found
    """The token can't be used as configured; the text says why. `pin`: trying again could lock the token."""

    def __init__(self, text: str, *, pin: bool = False) -> None:
        super().__init__(text)
        self.pin = pin


class Sort(Enum):
    """Whose fault it is."""

    DATA = auto()  # the caller's data
    USE = auto()  # ours: a mechanism, template or parameter this token does not take
    OBJECT = auto()  # the handle's
    SESSION = auto()  # this session holds a leftover operation: it is replaced
    TOKEN = auto()  # the token or the module
    UNCLEAR = auto()  # the token's, but some tokens say it for a wrong tag: ask the token
    UNKNOWN = auto()  # a return value the library has no class for, or the vendor's own: ask the token
    PIN = auto()  # of connecting: trying again could lock the token


# class, return value (None: the library's own), whose
TABLE: tuple[tuple[type[p11.PKCS11Error], int | None, Sort], ...] = (
    (p11.PKCS11Error, None, Sort.UNKNOWN),  # among them CKR_CRYPTOKI_NOT_INITIALIZED
    (p11.AnotherUserAlreadyLoggedIn, 0x104, Sort.TOKEN),
    (p11.ArgumentsBad, 0x07, Sort.USE),
    (p11.AttributeReadOnly, 0x10, Sort.USE),
    (p11.AttributeSensitive, 0x11, Sort.USE),
    (p11.AttributeTypeInvalid, 0x12, Sort.USE),
    (p11.AttributeValueInvalid, 0x13, Sort.USE),
    (p11.DataInvalid, 0x20, Sort.DATA),
    (p11.DataLenRange, 0x21, Sort.DATA),
    (p11.DeviceError, 0x30, Sort.TOKEN),
    (p11.DeviceMemory, 0x31, Sort.TOKEN),
    (p11.DeviceRemoved, 0x32, Sort.TOKEN),
    (p11.DomainParamsInvalid, 0x130, Sort.USE),
    (p11.EncryptedDataInvalid, 0x40, Sort.DATA),
    (p11.EncryptedDataLenRange, 0x41, Sort.DATA),
    (p11.ExceededMaxIterations, 0x1C0, Sort.TOKEN),
    (p11.FunctionCancelled, 0x50, Sort.TOKEN),
    (p11.FunctionFailed, 0x06, Sort.UNCLEAR),
    (p11.FunctionNotSupported, 0x54, Sort.USE),
    (p11.FunctionRejected, 0x200, Sort.USE),
    (p11.GeneralError, 0x05, Sort.UNCLEAR),
    (p11.HostMemory, 0x02, Sort.TOKEN),
    (p11.KeyHandleInvalid, 0x60, Sort.OBJECT),
    (p11.KeyIndigestible, 0x67, Sort.USE),
    (p11.KeyNeeded, 0x66, Sort.USE),
    (p11.KeyNotNeeded, 0x64, Sort.USE),
    (p11.KeyNotWrappable, 0x69, Sort.USE),
    (p11.KeySizeRange, 0x62, Sort.USE),
    (p11.KeyTypeInconsistent, 0x63, Sort.USE),
    (p11.KeyUnextractable, 0x6A, Sort.USE),
    (p11.MechanismInvalid, 0x70, Sort.USE),
    (p11.MechanismParamInvalid, 0x71, Sort.USE),
    (p11.MultipleObjectsReturned, None, Sort.USE),
    (p11.MultipleTokensReturned, None, Sort.USE),
    (p11.NoEvent, 0x08, Sort.USE),
    (p11.NoSuchKey, None, Sort.OBJECT),
    (p11.NoSuchToken, None, Sort.TOKEN),
    (p11.ObjectHandleInvalid, 0x82, Sort.OBJECT),
    (p11.OperationActive, 0x90, Sort.SESSION),
    (p11.OperationNotInitialized, 0x91, Sort.SESSION),
    (p11.PinExpired, 0xA3, Sort.PIN),
    (p11.PinIncorrect, 0xA0, Sort.PIN),
    (p11.PinInvalid, 0xA1, Sort.PIN),
    (p11.PinLenRange, 0xA2, Sort.PIN),
    (p11.PinLocked, 0xA4, Sort.PIN),
    (p11.PinTooWeak, 0x1B9, Sort.PIN),
    (p11.PublicKeyInvalid, 0x1B8, Sort.USE),
    (p11.RandomNoRNG, 0x121, Sort.USE),
    (p11.RandomSeedNotSupported, 0x120, Sort.USE),
    (p11.SessionClosed, 0xB0, Sort.TOKEN),
    (p11.SessionCount, 0xB1, Sort.TOKEN),
    (p11.SessionExists, 0xB6, Sort.TOKEN),
    (p11.SessionHandleInvalid, 0xB3, Sort.TOKEN),
    (p11.SessionReadOnly, 0xB5, Sort.USE),
    (p11.SessionReadOnlyExists, 0xB7, Sort.TOKEN),
    (p11.SessionReadWriteSOExists, 0xB8, Sort.TOKEN),
    (p11.SignatureInvalid, 0xC0, Sort.DATA),
    (p11.SignatureLenRange, 0xC1, Sort.DATA),
    (p11.SlotIDInvalid, 0x03, Sort.TOKEN),
    (p11.TemplateIncomplete, 0xD0, Sort.USE),
    (p11.TemplateInconsistent, 0xD1, Sort.USE),
    (p11.TokenNotPresent, 0xE0, Sort.TOKEN),
    (p11.TokenNotRecognised, 0xE1, Sort.TOKEN),
    (p11.TokenWriteProtected, 0xE2, Sort.USE),
    (p11.UnwrappingKeyHandleInvalid, 0xF0, Sort.OBJECT),
    (p11.UnwrappingKeySizeRange, 0xF1, Sort.USE),
    (p11.UnwrappingKeyTypeInconsistent, 0xF2, Sort.USE),
    (p11.UserAlreadyLoggedIn, 0x100, Sort.TOKEN),
    (p11.UserNotLoggedIn, 0x101, Sort.TOKEN),
    (p11.UserPinNotInitialized, 0x102, Sort.TOKEN),
    (p11.UserTooManyTypes, 0x105, Sort.TOKEN),
    (p11.WrappedKeyInvalid, 0x110, Sort.DATA),
    (p11.WrappedKeyLenRange, 0x112, Sort.DATA),
    (p11.WrappingKeyHandleInvalid, 0x113, Sort.OBJECT),
    (p11.WrappingKeySizeRange, 0x114, Sort.USE),
    (p11.WrappingKeyTypeInconsistent, 0x115, Sort.USE),
)
_SORTS = {kind: sort for kind, _, sort in TABLE}
_KINDS = {
    **{code: kind for kind, code, _ in TABLE if code is not None},
    0x140: p11.DomainParamsInvalid,  # CKR_CURVE_NOT_SUPPORTED of PKCS#11 3.0: the library has no class for it
}


def sort_of(error: p11.PKCS11Error) -> Sort:
    """Whose fault it is; a class that a later library adds counts as its parent does."""
    return next(_SORTS[kind] for kind in type(error).__mro__ if kind in _SORTS)


def check(code: int) -> None:
    """Raise what a return value means, in the library's classes; CKR_OK (0) is well."""
    if code:
        raise _KINDS.get(code, p11.PKCS11Error)(f"CKR 0x{code:X}")


def name_of(error: p11.PKCS11Error) -> str:
    """For status and log: the class, and the return value where the class does not tell."""
    return f"{type(error).__name__} {error}".strip()

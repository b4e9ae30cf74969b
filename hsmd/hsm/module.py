"""The PKCS#11 module as this process loads it, and the few calls that go past python-pkcs11.

Past the library go:
- C_Initialize, since the library passes NULL, by which it promises that only one thread will call
  (PKCS#11 2.40, 5.4); SoftHSM2 then takes no locks and breaks within a second of two threads.
- C_Finalize, which the library calls without letting other threads run.
- the calls that make or find an object: the library builds a Python class for each (60 to 70 µs of 95), and
  destroys no object but by that class. Here handles are numbers.
"""

import ctypes
import fcntl
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from ctypes import POINTER, byref, c_ulong, c_void_p
from pathlib import Path
from typing import Any

from pkcs11 import KDF, MGF, Attribute, Mechanism, PKCS11Error, Slot, _pkcs11
from pkcs11.attributes import AttributeMapper
from pkcs11.types import Session

from hsmd.hsm.faults import TokenRefused, check
from hsmd.tracing import span

_CKF_OS_LOCKING_OK = 2
_CKR_CRYPTOKI_ALREADY_INITIALIZED = 0x191
_CK_UNAVAILABLE_INFORMATION = c_ulong(-1).value
_PACKER = AttributeMapper()
# opencryptoki 3.27 closes its lock file in C_Finalize, but keeps the number and takes it for open from then
# on: it would lock whatever file gets that number next, and close it in its next C_Finalize. So after each
# C_Finalize the lock file is opened again under the same number. By name of the loaded module.
_LOCK_FILE = "/LCK..APIlock"
_lock_files: dict[str, int] = {}
_LOST = -1  # another thread's file got the number first


class _InitializeArgs(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("create", "destroy", "lock", "unlock")),
        ("flags", c_ulong),
        ("reserved", c_void_p),
    ]


class _Attribute(ctypes.Structure):
    _fields_ = [("type", c_ulong), ("value", c_void_p), ("length", c_ulong)]


class _Mechanism(ctypes.Structure):
    _fields_ = [("mechanism", c_ulong), ("parameter", c_void_p), ("length", c_ulong)]


class OaepParameter(ctypes.Structure):
    """CK_RSA_PKCS_OAEP_PARAMS."""

    _fields_ = [
        *((name, c_ulong) for name in ("hash", "mgf", "source")),
        ("label", c_void_p),
        ("label_length", c_ulong),
    ]


class EcdhParameter(ctypes.Structure):
    """CK_ECDH1_DERIVE_PARAMS."""

    _fields_ = [
        *(("kdf", c_ulong), ("shared_length", c_ulong), ("shared", c_void_p)),
        *(("public_length", c_ulong), ("public", ctypes.c_char_p)),
    ]


class TokenInfo(ctypes.Structure):
    """CK_TOKEN_INFO."""

    _fields_ = [
        *(("label", ctypes.c_char * 32), ("manufacturer", ctypes.c_char * 32)),
        *(("model", ctypes.c_char * 16), ("serial", ctypes.c_char * 16), ("flags", c_ulong)),
        *((name, c_ulong) for name in ("most_sessions", "sessions", "most_writers", "writers")),
        *((name, c_ulong) for name in ("longest_pin", "shortest_pin")),
        *((name, c_ulong) for name in ("public_room", "public_left", "private_room", "private_left")),
        *(("hardware", ctypes.c_ubyte * 2), ("firmware", ctypes.c_ubyte * 2), ("time", ctypes.c_char * 16)),
    ]


_OAEP = {"sha1": (Mechanism.SHA_1, MGF.SHA1), "sha256": (Mechanism.SHA256, MGF.SHA256)}


def oaep_parameter(digest: str = "sha256") -> OaepParameter:
    """SHA-256 or SHA-1, MGF1 of the same, an empty label (CKZ_DATA_SPECIFIED)."""
    hashed, mask = _OAEP[digest]
    return OaepParameter(hashed, mask, 1, None, 0)


# Places in CK_FUNCTION_LIST (PKCS#11 2.40, pkcs11f.h order; place 0 is the version), with the arguments.
_SESSION = _OBJECT = c_ulong
_TEMPLATE = (POINTER(_Attribute), c_ulong)
_FUNCTIONS: dict[str, tuple[int, tuple[Any, ...]]] = {
    "C_Initialize": (1, (c_void_p,)),
    "C_Finalize": (2, (c_void_p,)),
    "C_GetTokenInfo": (7, (c_ulong, POINTER(TokenInfo))),
    "C_InitToken": (10, (c_ulong, ctypes.c_char_p, c_ulong, ctypes.c_char_p)),
    "C_CreateObject": (21, (_SESSION, *_TEMPLATE, POINTER(_OBJECT))),
    "C_DestroyObject": (23, (_SESSION, _OBJECT)),
    "C_GetAttributeValue": (25, (_SESSION, _OBJECT, *_TEMPLATE)),
    "C_SetAttributeValue": (26, (_SESSION, _OBJECT, *_TEMPLATE)),
    "C_FindObjectsInit": (27, (_SESSION, *_TEMPLATE)),
    "C_FindObjects": (28, (_SESSION, POINTER(_OBJECT), c_ulong, POINTER(c_ulong))),
    "C_FindObjectsFinal": (29, (_SESSION,)),
    "C_GenerateKey": (59, (_SESSION, POINTER(_Mechanism), *_TEMPLATE, POINTER(_OBJECT))),
    "C_GenerateKeyPair": (
        60,
        (_SESSION, POINTER(_Mechanism), *_TEMPLATE, *_TEMPLATE, POINTER(_OBJECT), POINTER(_OBJECT)),
    ),
    "C_UnwrapKey": (
        62,
        (_SESSION, POINTER(_Mechanism), _OBJECT, ctypes.c_char_p, c_ulong, *_TEMPLATE, POINTER(_OBJECT)),
    ),
    "C_DeriveKey": (63, (_SESSION, POINTER(_Mechanism), _OBJECT, *_TEMPLATE, POINTER(_OBJECT))),
}


class Template:
    """Attributes of an object to be, packed once and never changed, so that threads may share it."""

    def __init__(self, attributes: Mapping[Attribute, object]) -> None:
        packed = [_PACKER.pack_attribute(name, value) for name, value in attributes.items()]
        self._kept = [ctypes.create_string_buffer(value, len(value)) for value in packed]
        self.count = len(packed)
        self.array = (_Attribute * self.count)(
            *(
                _Attribute(name, ctypes.addressof(buffer), len(value))
                for name, buffer, value in zip(attributes, self._kept, packed, strict=True)
            )
        )


class Module:
    """A loaded module. It belongs to the process that made it: not to be used after a fork (2.40, 2.5.2).

    `apart` loads an instance of it for this object alone, with its own C_Initialize and C_Finalize, however
    often the module is loaded in this process already (docs/decisions/0009).
    """

    def __init__(self, path: Path, *, apart: bool = False) -> None:
        try:
            loaded = _copy(path) if apart else str(path)
            ctypes.CDLL(loaded)  # held for good: threads may be inside when python-pkcs11 lets go of it
            # Made without its __init__, which would C_Initialize(NULL).
            self._lib = _pkcs11.lib.__new__(_pkcs11.lib, loaded)  # type: ignore[call-arg]  # its __cinit__
        except (OSError, PKCS11Error) as error:
            raise TokenRefused(f"the PKCS#11 module {path} can't be loaded: {error}") from error
        self.path = path
        self.pid = os.getpid()
        self._loaded = loaded
        # The library's own function list: some modules (p11-kit's) hand out a new, separate one each
        # time they are asked. It is the first field of its base struct HasFuncList.
        places = ctypes.cast(c_void_p.from_address(id(self._lib) + object.__basicsize__), POINTER(c_void_p))
        self._call = {
            name: ctypes.CFUNCTYPE(c_ulong, *arguments)(places[place])
            for name, (place, arguments) in _FUNCTIONS.items()
        }

    def initialize(self) -> None:
        """C_Initialize for many threads. Raises TokenRefused if this process did so before, PKCS11Error."""
        if _lock_files.get(self._loaded) == _LOST:
            raise TokenRefused(f"the PKCS#11 module {self.path} can't be loaded anew in this process")
        arguments = _InitializeArgs(flags=_CKF_OS_LOCKING_OK)
        before = _open_lock_files()
        code = self._call["C_Initialize"](byref(arguments))
        if code == _CKR_CRYPTOKI_ALREADY_INITIALIZED:
            raise TokenRefused(f"the PKCS#11 module {self.path} is in use in this process already")
        check(code)
        for number in _open_lock_files().keys() - before.keys():
            _lock_files[self._loaded] = number

    def finalize(self) -> None:
        """C_Finalize: ends all sessions and the login. No thread may be inside. Raises PKCS11Error."""
        number = _lock_files.get(self._loaded, _LOST)
        path = _open_lock_files().get(number)
        check(self._call["C_Finalize"](None))
        if path and not _reopened(path, number):
            _lock_files[self._loaded] = _LOST

    def slots(self) -> list[Slot]:
        """All slots, with a token or without. Raises PKCS11Error."""
        return self._lib.get_slots()

    def token_info(self, slot: Slot) -> TokenInfo:
        """C_GetTokenInfo. Raises PKCS11Error."""
        info = TokenInfo()
        check(self._call["C_GetTokenInfo"](slot.slot_id, byref(info)))
        return info

    def init_token(self, slot: Slot, so_pin: str, label: str) -> None:
        """C_InitToken: whatever the token held is gone. `label` has 32 bytes at most. Raises PKCS11Error."""
        pin = so_pin.encode()
        check(self._call["C_InitToken"](slot.slot_id, pin, len(pin), label.encode().ljust(32)))

    def create(self, session: Session, template: Template) -> int:
        """C_CreateObject: the handle of an object with given value. Raises PKCS11Error."""
        made = c_ulong()
        check(self._call["C_CreateObject"](_number(session), template.array, template.count, byref(made)))
        return made.value

    def generate(self, session: Session, mechanism: Mechanism, template: Template) -> int:
        """C_GenerateKey: the handle of a new secret key. Raises PKCS11Error."""
        made = c_ulong()
        how = _Mechanism(mechanism, None, 0)
        attributes = (template.array, template.count)
        self._use("C_GenerateKey", mechanism, _number(session), byref(how), *attributes, byref(made))
        return made.value

    def generate_pair(
        self, session: Session, mechanism: Mechanism, public: Template, private: Template
    ) -> tuple[int, int]:
        """C_GenerateKeyPair: the handles of a new public and private key. Raises PKCS11Error."""
        made = c_ulong(), c_ulong()
        how = _Mechanism(mechanism, None, 0)
        templates = (public.array, public.count, private.array, private.count)
        handles = (byref(made[0]), byref(made[1]))
        self._use("C_GenerateKeyPair", mechanism, _number(session), byref(how), *templates, *handles)
        return made[0].value, made[1].value

    def derive(self, session: Session, key: int, public: bytes, template: Template) -> int:
        """C_DeriveKey by ECDH with a peer's point, no derivation function: the handle. Raises PKCS11Error."""
        made = c_ulong()
        mechanism = Mechanism.ECDH1_DERIVE
        how = _mechanism(mechanism, EcdhParameter(KDF.NULL, 0, None, len(public), public))
        attributes = (template.array, template.count)
        self._use("C_DeriveKey", mechanism, _number(session), byref(how), key, *attributes, byref(made))
        return made.value

    def unwrap(
        self,
        session: Session,
        mechanism: Mechanism,
        key: int,
        wrapped: bytes,
        template: Template,
        parameter: ctypes.Structure | None = None,
    ) -> int:
        """C_UnwrapKey: the handle of the key in `wrapped`. Raises PKCS11Error."""
        made = c_ulong()
        how = _mechanism(mechanism, parameter)
        given = (key, wrapped, len(wrapped), template.array, template.count)
        self._use("C_UnwrapKey", mechanism, _number(session), byref(how), *given, byref(made))
        return made.value

    def find(self, session: Session, template: Template, most: int) -> list[int]:
        """C_FindObjects: the handles of at most `most` objects with these attributes. Raises PKCS11Error."""
        number, found, count = _number(session), (c_ulong * most)(), c_ulong()
        check(self._call["C_FindObjectsInit"](number, template.array, template.count))
        try:
            check(self._call["C_FindObjects"](number, found, most, byref(count)))
        finally:
            check(self._call["C_FindObjectsFinal"](number))
        return list(found[: count.value])

    def destroy(self, session: Session, handle: int) -> None:
        """C_DestroyObject. Raises PKCS11Error."""
        check(self._call["C_DestroyObject"](_number(session), handle))

    def change(self, session: Session, handle: int, template: Template) -> None:
        """C_SetAttributeValue. Raises PKCS11Error."""
        check(self._call["C_SetAttributeValue"](_number(session), handle, template.array, template.count))

    def read(self, session: Session, handle: int, attribute: Attribute, most: int) -> bytes:
        """C_GetAttributeValue: one attribute of at most `most` bytes; b"" if hidden. Raises PKCS11Error."""
        buffer = ctypes.create_string_buffer(most)
        wanted = _Attribute(attribute, ctypes.addressof(buffer), most)
        check(self._call["C_GetAttributeValue"](_number(session), handle, byref(wanted), 1))
        length: int = wanted.length
        return b"" if length == _CK_UNAVAILABLE_INFORMATION else buffer.raw[:length]

    def _use(self, function: str, mechanism: Mechanism, *arguments: object) -> None:
        """What takes a mechanism. Raises PKCS11Error."""
        with span(function, mechanism=mechanism):
            check(self._call[function](*arguments))


def _copy(path: Path) -> str:
    """The name of a copy in memory: a file of its own, so that the loader makes an instance of its own.

    It stays open for good, as its name must not come to mean another copy.
    """
    copy = os.memfd_create(path.name, os.MFD_CLOEXEC)
    with path.open("rb") as file, os.fdopen(os.dup(copy), "wb") as into:
        shutil.copyfileobj(file, into)
    return f"/proc/self/fd/{copy}"


def _open_lock_files() -> dict[int, str]:
    """The lock files of opencryptoki that this process has open, by number."""
    found = {}
    for each in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            path = str(each.readlink())
            if path.endswith(_LOCK_FILE):
                found[int(each.name)] = path
    return found


def _reopened(path: str, number: int) -> bool:
    """Open it under this number, which is free. False when it is not: it was taken since."""
    made = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if made == number:
        return True
    copy = fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, number)
    os.close(made)
    if copy != number:
        os.close(copy)
    return copy == number


def _mechanism(mechanism: Mechanism, parameter: ctypes.Structure | None) -> _Mechanism:
    if parameter is None:
        return _Mechanism(mechanism, None, 0)
    made = _Mechanism(mechanism, ctypes.addressof(parameter), ctypes.sizeof(parameter))
    made.kept = parameter  # lives as long as what points at it
    return made


def _number(session: Session) -> int:
    number: int = session.handle  # type: ignore[attr-defined]  # compiled in, not in its stub
    return number

"""Where a token is: PKCS#11 URIs (RFC 7512), as far as they name a token and the module behind it."""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

_SCHEME = "pkcs11:"

# RFC 7512, 2.3: what may stand unencoded, beside the separators ";" of the path and "&" of the query.
_PATH_TEXT = re.compile(r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,=&]|%[0-9A-Fa-f]{2})*\Z")
_QUERY_TEXT = re.compile(r"(?:[A-Za-z0-9\-._~:\[\]@!$'()*+,=/?|]|%[0-9A-Fa-f]{2})*\Z")
_ATTRIBUTE_NAME = re.compile(r"[A-Za-z0-9\-_]+\Z")

_TOKEN_ATTRIBUTES = {
    "token": "token",
    "serial": "serial",
    "manufacturer": "manufacturer",
    "model": "model",
    "slot-description": "slot_description",
    "slot-manufacturer": "slot_manufacturer",
    "slot-id": "slot_id",
}
# Known to the RFC, but meaningless or harmful in the address of a token; said, rather than passed over.
_REFUSED = {
    "object": "it names an object, and the address of a token is due",
    "type": "it names an object, and the address of a token is due",
    "id": "it names an object, and the address of a token is due",
    "library-manufacturer": "the module is chosen by module-path",
    "library-description": "the module is chosen by module-path",
    "library-version": "the module is chosen by module-path",
    "module-name": "the module is chosen by module-path",
    "pin-value": "a PIN never stands in an address",
    "pin-source": "the PIN's file is an option of its own",
}


class AddressError(ValueError):
    """The text is no PKCS#11 URI of a token; the message says where and why, and repeats no value."""


@dataclass(frozen=True, slots=True)
class Address:
    """One token behind one module; None matches anything. `str()` gives the URI back."""

    module_path: Path
    token: str | None = None
    serial: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    slot_description: str | None = None
    slot_manufacturer: str | None = None
    slot_id: int | None = None

    def __str__(self) -> str:
        named = {name: getattr(self, slot) for name, slot in _TOKEN_ATTRIBUTES.items()}
        path = ";".join(
            f"{name}={quote(str(value), safe='')}" for name, value in named.items() if value is not None
        )
        return f"{_SCHEME}{path}?module-path={quote(str(self.module_path), safe='/')}"


def parse_address(uri: str) -> Address:
    """Read a URI such as `pkcs11:token=hsmd?module-path=/usr/lib/softhsm/libsofthsm2.so`.

    By RFC 7512, 2.4, an unknown attribute in the path matches no token (here: it is refused at once)
    and an unknown one in the query is passed over. Raises AddressError.
    """
    if uri[: len(_SCHEME)].lower() != _SCHEME:
        raise AddressError("an address begins with pkcs11:")
    path, _, query = uri[len(_SCHEME) :].partition("?")
    values: dict[str, object] = {}
    for name, value in _attributes(path, ";", _PATH_TEXT):
        slot = _TOKEN_ATTRIBUTES.get(name)
        if slot is None:
            raise AddressError(f"{name}: {_REFUSED.get(name, 'no such attribute of a token')}")
        if slot in values:
            raise AddressError(f"{name}: stands twice")
        values[slot] = _slot_id(value) if slot == "slot_id" else value
    return Address(module_path=_module_path(query), **values)  # type: ignore[arg-type]  # typed by slot above


@dataclass(frozen=True, slots=True)
class UKeyAddress:
    """A UKey's token, and its key there by label (`object`) and CKA_ID (`id`); None matches any."""

    token: Address
    label: str | None = None
    key_id: bytes | None = None


def parse_ukey_address(uri: str) -> UKeyAddress:
    """Read a URI like `pkcs11:token=alice;object=hsmd?module-path=...`: a token's, and maybe a key of it.

    Raises AddressError.
    """
    if uri[: len(_SCHEME)].lower() != _SCHEME:
        raise AddressError("an address begins with pkcs11:")
    path, mark, query = uri[len(_SCHEME) :].partition("?")
    named: dict[str, str] = {}
    others = []
    for part in path.split(";") if path else ():
        name, _, raw = part.partition("=")
        if name not in ("object", "id", "type"):
            others.append(part)
        elif name in named or not _PATH_TEXT.match(raw):
            raise AddressError(f"{name}: stands twice, or a character in it has to be percent-encoded")
        else:
            named[name] = raw
    if named.get("type", "private") != "private":
        raise AddressError("type: a private key is due")
    token = parse_address(f"{_SCHEME}{';'.join(others)}{mark}{query}")
    try:
        label = unquote_to_bytes(named["object"]).decode() if "object" in named else None
    except UnicodeDecodeError as error:
        raise AddressError("object: is not UTF-8") from error
    return UKeyAddress(token, label, unquote_to_bytes(named["id"]) if "id" in named else None)


def _module_path(query: str) -> Path:
    found: list[str] = []
    for name, value in _attributes(query, "&", _QUERY_TEXT):
        if name in _REFUSED:
            raise AddressError(f"{name}: {_REFUSED[name]}")
        if name == "module-path":
            found.append(value)
    if len(found) != 1:
        raise AddressError("module-path: stands twice" if found else "module-path: is missing")
    if not found[0].startswith("/") or "\0" in found[0]:
        raise AddressError("module-path: an absolute path is due")
    return Path(found[0])


def _slot_id(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", value):
        raise AddressError("slot-id: a decimal number is due")
    return int(value)


def _attributes(text: str, separator: str, allowed: re.Pattern[str]) -> list[tuple[str, str]]:
    if not text:
        return []
    found = []
    for part in text.split(separator):
        name, equals, raw = part.partition("=")
        if not equals or not _ATTRIBUTE_NAME.match(name):
            raise AddressError(f"name=value pairs with {separator!r} between them are due")
        if not allowed.match(raw):
            raise AddressError(f"{name}: a character in it has to be percent-encoded")
        try:
            found.append((name, unquote_to_bytes(raw).decode()))
        except UnicodeDecodeError as error:
            raise AddressError(f"{name}: is not UTF-8") from error
    return found


TOKEN_FIELDS = tuple(field.name for field in fields(Address) if field.name != "module_path")

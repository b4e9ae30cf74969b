"""What tokens and temporary access keys have in common: texts that we have signed, good without any row.

A text is base64url of: 4 bytes of magic and format version, JSON, and the HMAC of both by the credential
key, computed in the HSM. It says who, for what, until when, and which texts it was made from: revoking one
ends all that was made from it. A new layout gets a new magic; an old one needs to be read for a day more.

What was found good is known, by the text's digest, until anything changes in its user's domain or the
agency's.
"""

import base64
import binascii
import hashlib
import hmac
import json
from dataclasses import asdict, dataclass

from hsmd.domain import agencies, certificates
from hsmd.domain.cache import ANY, of_none
from hsmd.domain.core import CREDENTIAL_KEY_LABEL, Core
from hsmd.domain.identity import Identity, enabled_user
from hsmd.errors import TOKEN_EXPIRED, TOKEN_INVALID, Error
from hsmd.keyring import with_token_key
from hsmd.store import Tx, access_keys, revocations
from hsmd.store.agencies import Agency
from hsmd.store.identity import User

TOKEN, SECURITY_TOKEN = b"HTK\x02", b"HST\x01"
MOST_ANCESTORS = 8

_MAC_BYTES = 32
_ACCESS_KEY = "access-key/"
_SECURITY_TOKEN_START = base64.urlsafe_b64encode(SECURITY_TOKEN[:3]).decode()  # of whole groups of base64
_CHANGE_MILLIS = 10_000


@dataclass(frozen=True, slots=True)
class Bearer:
    """What a text says. Ids are 32 hex digits or ""; times in ms since 1970 UTC.

    `ancestors`: the ids of the texts that it was made from, or what stands for the access key
    (`of_access_key`) or the certificate that was shown. `access_key`, `wrapped` (hex) and `root_label` are a
    temporary access key and its secret, wrapped by the root key of that label.
    """

    id: str
    method: str
    user_id: str
    issued: int
    expires: int
    project_id: str = ""
    agency_id: str = ""
    session_name: str = ""
    session_policy: str = ""
    ancestors: tuple[str, ...] = ()
    access_key: str = ""
    wrapped: str = ""
    root_label: str = ""

    def __repr__(self) -> str:
        return f"Bearer(id={self.id!r}, user_id={self.user_id!r}, expires={self.expires})"


def sign(core: Core, magic: bytes, bearer: Bearer) -> str:
    """The text that says this."""
    content = {name: value for name, value in asdict(bearer).items() if value}
    signed = magic + json.dumps(content, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(signed + _mac(core, signed)).decode()


def is_security_token(text: str) -> bool:
    """Whether it looks like the security token of a temporary access key; nothing of it has been checked."""
    return text.startswith(_SECURITY_TOKEN_START)


def of_access_key(access_key: str) -> str:
    """How an access key stands among the ancestors of what is made by it: that ends with it."""
    return _ACCESS_KEY + access_key


def ending(core: Core) -> int:
    """What a user's `tokens_not_before` becomes, so that whatever was issued up to now is void.

    It lies ahead by more than a change can take: a text that is issued to the user as it was, while the
    change is on its way, is void as well.
    """
    return core.clock() + _CHANGE_MILLIS


def issuing(user: User, now: int) -> int:
    """The time that a text of the user gets, who showed it is that one, as it now is, after `now`."""
    return max(now, (user.tokens_not_before or 0) + 1)


def digest(text: str) -> str:
    """What is remembered of a text instead of itself."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def opened(core: Core, magic: bytes, text: str, digested: str = "") -> Bearer:
    """What the text says; `digested` is its digest where that is known already.

    Raises Error(TOKEN_INVALID) for one that is not ours.
    """
    owner = f"bearer {digested or digest(text)}"
    return core.people.get(owner, magic.hex(), lambda: _open(core, magic, text), of_none)


def identity(core: Core, magic: bytes, bearer: Bearer) -> Identity:
    """Whom the text that says this, and is ours, makes of its holder, now.

    Raises Error(TOKEN_EXPIRED), Error(TOKEN_INVALID) for one that is revoked or whose agency is no more, and
    Error(IDENTITY_REFUSED) when its user is no more, or the certificate that it was made by is revoked.
    """
    known = core.people.get(
        f"bearer {bearer.id}", f"by {magic.hex()}", lambda: _identify(core, magic, bearer), _domains
    )
    if known.ends <= core.clock():
        raise Error(TOKEN_EXPIRED)
    for each in known.chain:
        if certificates.is_ancestor(each):  # whose list is a file, and no row whose change would be told
            core.check_certificate(certificates.mark_of(each))
    return known


def _domains(found: Identity) -> tuple[str, ...]:
    """Those of the user and of the agency; what is said of certificates may change with any."""
    if any(map(certificates.is_ancestor, found.chain)):
        return (ANY,)
    return found.user.domain_id, found.agency_domain or found.user.domain_id


def _open(core: Core, magic: bytes, text: str) -> Bearer:
    try:
        raw = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise Error(TOKEN_INVALID) from error
    signed, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
    computed = _mac(core, signed)
    canonical = base64.urlsafe_b64encode(raw).decode() == text  # one text has one spelling
    if not signed.startswith(magic) or not canonical or not hmac.compare_digest(computed, mac):
        raise Error(TOKEN_INVALID)
    content = json.loads(signed[len(magic) :])
    return Bearer(**{**content, "ancestors": tuple(content.get("ancestors", ()))})


def _identify(core: Core, magic: bytes, bearer: Bearer) -> Identity:
    user = enabled_user(core, bearer.user_id)
    ids = (bearer.id, *bearer.ancestors)
    with core.store.read() as tx:
        revoked = any(_is_over(tx, each, user) for each in ids)
    if revoked or bearer.issued <= (user.tokens_not_before or 0):
        raise Error(TOKEN_INVALID)
    agency = agencies.assumed(core, bearer.agency_id, user) if bearer.agency_id else None
    if bearer.agency_id and agency is None:
        raise Error(TOKEN_INVALID)
    return Identity(
        kind="token" if magic == TOKEN else "temporary-key",
        user=user,
        bound_project=bearer.project_id,
        agency_id=bearer.agency_id,
        agency_name=_name(agency, bearer.session_name),
        agency_domain=agency.domain_id if agency else "",
        session_policy=bearer.session_policy,
        ends=min(bearer.expires, agency.expires or bearer.expires) if agency else bearer.expires,
        chain=ids,
    )


def _is_over(tx: Tx, ancestor: str, user: User) -> bool:
    """Whether the text is revoked, the access key deleted or disabled, or the certificate another's."""
    if certificates.is_ancestor(ancestor):
        return not certificates.stands(tx, ancestor, user.id)
    if not ancestor.startswith(_ACCESS_KEY):
        return revocations.get_revocation(tx, ancestor) is not None
    row = access_keys.get_access_key(tx, ancestor.removeprefix(_ACCESS_KEY))
    return row is None or not row.enabled


def _name(agency: Agency | None, session: str) -> str:
    """What records call who acts as an agency: its name, and whom its caller said that it acts for."""
    if agency is None:
        return ""
    return f"{agency.name}/{session}" if session else agency.name


def _mac(core: Core, data: bytes) -> bytes:
    return with_token_key(core.token, CREDENTIAL_KEY_LABEL, lambda key: core.token.hmac(key, data))

"""The HSM: the only room that speaks PKCS#11.

address.py     where the token is (RFC 7512)
faults.py      every fault of PKCS#11 in one table
module.py      loading, and the calls past python-pkcs11
templates.py   what objects may do
operations.py  what is done with keys
schemes.py     how keys sign, authenticate and agree
points.py      public keys, from attributes and back
oaep.py        the decoding of RSAES-OAEP, for tokens that can't
probe.py       what the token can do, by doing it
pair_probe.py  the same for key pairs
connection.py  from loading to a probed login, under a lock between processes
calls.py       who is inside the module, until when
refusal.py     that the PIN was refused, for all processes
handles.py     what callers hold for an object in the token
link.py        loss, hanging, reconnection
desk.py        a thread's session and the border where faults are translated
loading.py     keys on their way in and out, wrapped
pairs.py       the door's half for key pairs and HMACs
kept.py        the same for keys that stay in the token
ukey_token.py  a UKey in its holder's hands, for hsmctl
passage.py     the same for keys of hsmd's own that may pass to another token
blank.py       a token before its user can log in
token.py       the door: Token
"""

from hsmd.hsm.address import Address, AddressError, parse_address
from hsmd.hsm.blank import Blank, Officer
from hsmd.hsm.faults import BadData, ObjectGone, TokenRefused, WrongSize
from hsmd.hsm.handles import Handle
from hsmd.hsm.link import STATES, TokenStatus
from hsmd.hsm.pairs import Pair
from hsmd.hsm.passage import CARRIER_BYTES, Carrier, Held, Passed
from hsmd.hsm.probe import Capability
from hsmd.hsm.refusal import Refusal
from hsmd.hsm.token import Token

__all__ = [
    "CARRIER_BYTES",
    "STATES",
    "Address",
    "AddressError",
    "BadData",
    "Blank",
    "Capability",
    "Carrier",
    "Handle",
    "Held",
    "ObjectGone",
    "Officer",
    "Pair",
    "Passed",
    "Refusal",
    "Token",
    "TokenRefused",
    "TokenStatus",
    "WrongSize",
    "parse_address",
]

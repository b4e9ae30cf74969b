"""Servicer of ukeys.proto."""

from hsmd import ukey as keys
from hsmd.api.convert import timestamp
from hsmd.domain import ukeys
from hsmd.domain.core import Call
from hsmd.domain.ukey_sessions import Sessions
from hsmd.pb.v1 import ukeys_pb2 as pb
from hsmd.store.ukeys import UKey

SERVICE = pb.DESCRIPTOR.services_by_name["Ukeys"]


class Logins:
    """The methods that need the door's sessions."""

    SERVICE = SERVICE

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def begin_login(self, call: Call, request: pb.BeginLoginRequest) -> pb.BeginLoginResponse:
        """A challenge."""
        made = self._sessions.begin(call, request.fingerprint, request.purpose)
        return pb.BeginLoginResponse(
            challenge=made.challenge,
            instance=made.instance,
            server_certificate=made.server_certificate,
            client_certificate=made.channel.certificate,
            peer=made.channel.peer,
            key=made.key,
            purpose=made.purpose,
            expires=made.expires,
        )

    def login(self, call: Call, request: pb.LoginRequest) -> pb.LoginResponse:
        """A session."""
        found = self._sessions.log_in(call, request.challenge, request.signature)
        return pb.LoginResponse(session=found.session, expires=found.expires, ukey=_ukey(found.ukey))

    def logout(self, call: Call, request: pb.LogoutRequest) -> pb.LogoutResponse:
        """No session."""
        self._sessions.log_out(call)
        return pb.LogoutResponse()


def list_ukeys(call: Call, request: pb.ListUkeysRequest) -> pb.ListUkeysResponse:
    """All of them, and the quorum."""
    with call.read() as tx:
        quorum = ukeys.quorum(tx)
    return pb.ListUkeysResponse(
        ukeys=[_ukey(each) for each in ukeys.registry(call.core).by_id.values()],
        quorum=pb.Quorum(administrators=quorum.administrators, operators=quorum.operators),
        instance=ukeys.instance(call.core),
    )


def show_ukey(call: Call, request: pb.ShowUkeyRequest) -> pb.ShowUkeyResponse:
    """One of them."""
    return pb.ShowUkeyResponse(ukey=_ukey(ukeys.show(call, request.ukey_id)))


def begin_enrolment(call: Call, request: pb.BeginEnrolmentRequest) -> pb.BeginEnrolmentResponse:
    """What is to be signed and opened."""
    made = ukeys.begin_enrolment(call, request.public_key, request.opens)
    return pb.BeginEnrolmentResponse(nonce=made.nonce, instance=made.instance, box=made.box)


def _ukey(ukey: UKey) -> pb.Ukey:
    return pb.Ukey(
        id=ukey.id,
        name=ukey.name,
        role=ukey.role,
        serial=ukey.serial,
        fingerprint=ukey.fingerprint,
        key=keys.describe(ukey.public_key),
        public_key=ukey.public_key,
        certificate=ukey.certificate,
        opens=ukey.opens,
        created=timestamp(ukey.created),
        created_by=ukey.created_by,
        revoked=timestamp(ukey.revoked),
        revoked_by=ukey.revoked_by or "",
    )

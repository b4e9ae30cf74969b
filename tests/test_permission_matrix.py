"""Methods by kinds of identity, roles, ownership and states of keys: every answer held against a table.

The table, `permission-matrix.txt`, was reviewed and says what is to be; here stands only how its columns
are put together. Every combination of method, role, ownership and state is tried, by one kind of identity
after the other: a kind shows who calls and nothing else. So each kind meets every method, role, ownership
and state, but not every combination of these.
"""

import hashlib
import hmac
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsmd.api.methods import Method, methods_of, signed_beginning
from hsmd.client import Client
from hsmd.client.errors import from_rpc
from hsmd.daemon.certificates import Authority
from hsmd.descriptors import services
from hsmd.domain import builtin
from hsmd.domain.core import in_domain
from hsmd.pb.options.v1 import options_pb2
from hsmd.pb.v1 import (
    access_keys_pb2,
    agencies_pb2,
    aliases_pb2,
    assignments_pb2,
    certificates_pb2,
    grants_pb2,
    projects_pb2,
)
from tests import keyspaces
from tests.calls import fresh
from tests.credentials import ask, issued
from tests.people import login, person
from tests.stand import PATIENT, Stand, Tenant, standing

TABLE = Path(__file__).with_name("permission-matrix.txt")

ROLES = {
    "A": "KMS Administrator",
    "F": "KMS CMKFullAccess",
    "R": "KMS CMKReadOnlyAccess",
    "T": "Tenant Administrator",
    "G": "Tenant Guest",
    "N": "",
}
ON_DOMAIN = {"S": "Security Administrator", "I": "IAM ReadOnlyAccess", "O": "hsmd Operator", "D": ""}
KINDS = ("token", "access-key", "temporary-key", "certificate", "socket", "agency")
OWNERSHIPS = ("own", "sibling", "foreign", "granted")
STATES = ("enabled", "disabled", "deletion", "import")

REFUSED, NOT_THERE, NO_PROJECT = "KMS.0330", "KMS.0207", "KMS.0307"
OPEN = (options_pb2.OPEN, options_pb2.WELCOME)

Metadata = tuple[tuple[str, str | bytes], ...]
SOURCE = ("hsmd-source", "127.0.0.1")


# The table


@dataclass(frozen=True)
class Row:
    """What is to be: the roles that may, the operation of a grant ("" for none), the answer by state."""

    roles: str
    grant: str
    states: dict[str, str]

    def answer(self, role: str, ownership: str, state: str) -> str:
        """How the columns are put together."""
        may = role in self.roles
        if role == "N":
            return NO_PROJECT
        if ownership == "granted" and self.grant:
            return self.states[state]
        if not may:
            return REFUSED
        return self.states[state] if ownership == "own" else NOT_THERE


def _lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


KEYED, _, OTHERS = TABLE.read_text().partition("\n# Other methods")
ROWS = {
    name: Row(roles, "" if grant == "-" else grant, dict(zip(STATES, states, strict=True)))
    for name, roles, grant, *states in _lines(KEYED)
}
ALLOWED = {name: (roles, without) for name, roles, *without in _lines(OTHERS.partition("\n")[2])}
METHODS: dict[str, tuple[Any, Method]] = {
    f"{service.name}.{descriptor.name}": (descriptor, method)
    for service in services()
    for descriptor, method in methods_of(service)
}


def test_every_method_stands_in_the_table_once() -> None:
    """But those of peer regions and of gateways, which no role allows: they have tests of their own."""
    served = {name: each for name, (_, each) in METHODS.items() if not (each.for_peers or each.for_gateways)}
    keyed = {name for name, method in served.items() if method.resource.endswith("key_id")}
    assert set(ROWS) == keyed
    assert set(ALLOWED) == set(served) - keyed


def test_the_table_agrees_with_what_methods_declare() -> None:
    for name, row in ROWS.items():
        assert METHODS[name][1].grant == row.grant, name


# Requests that are in order, but for what the table is about


AES, SIGNER, MAC, EC = (
    ("AES_256", ""),
    ("EC_P256", "SIGN_VERIFY"),
    ("HMAC_256", ""),
    ("EC_P256", "KEY_AGREEMENT"),
)
KIND_OF_KEY = {"Agreement.": EC, "Signing.": SIGNER, "Macs.": MAC}
PEER = ec.generate_private_key(ec.SECP256R1()).public_key()
PEER_DER = PEER.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
ATTESTED = {"custom_signature": b"x", "custom_public_key": b"x", "expire_time": "2030-01-31T12:00:00Z"}
SIGNED: dict[str, Any] = {"message": b"x", "signing_algorithm": 7, "message_type": 2}


@dataclass
class World:
    """What requests need beside their key.

    An alias that is moved about, a ciphertext of one's own key, the terms of a capsule.
    """

    alias: str
    sealed: bytes
    terms: str
    ciphertexts: dict[str, bytes] = field(default_factory=dict)


FIELDS: dict[str, Callable[[World, str], dict[str, Any]]] = {
    "Agreement.DeriveSharedSecret": lambda *_: {"key_agreement_algorithm": 1, "public_key": PEER_DER},
    "Aliases.CreateAlias": lambda *_: {"alias": f"alias/{fresh()}"},
    "Aliases.DeleteAlias": lambda *_: {"aliases": [f"alias/{fresh()}"]},
    "Aliases.AssociateAlias": lambda world, _: {"alias": world.alias},
    "Capsules.CreateDataKeyCapsule": lambda world, _: {"datakey_length": 256, "key_policy": world.terms},
    "Capsules.DecryptDataKeyCapsule": lambda *_: {"datakey_capsule": b"x", "attestation_document": ATTESTED},
    "Crypto.EncryptData": lambda *_: {"plain_text": b"x"},
    "Crypto.DecryptData": lambda world, key: {"cipher_text": world.ciphertexts.get(key, bytes(140))},
    "Crypto.ReEncrypt": lambda world, _: {"cipher_text": world.sealed},
    "DataKeys.CreateDataKey": lambda *_: {"datakey_length": 256},
    "DataKeys.CreateDataKeyWithoutPlaintext": lambda *_: {"datakey_length": 256},
    "DataKeys.EncryptDataKey": lambda *_: {
        "plain_text": bytes(32) + hashlib.sha256(bytes(32)).digest(),
        "datakey_plain_length": 32,
    },
    "DataKeys.DecryptDataKey": lambda *_: {"cipher_text": bytes(172), "datakey_cipher_length": 172},
    "DataKeys.CreateRsaDataKeyPair": lambda *_: {"key_spec": 1},
    "DataKeys.CreateEcDataKeyPair": lambda *_: {"key_spec": 1},
    "Deletion.ScheduleKeyDeletion": lambda *_: {"pending_days": 7},
    "Grants.CreateGrant": lambda *_: {"grantee_principal": "0" * 32, "operations": [5]},
    "Grants.RevokeGrant": lambda *_: {"grant_id": "0" * 64},
    "Grants.RetireGrant": lambda *_: {"grant_id": "0" * 64},
    "Imports.GetParametersForImport": lambda *_: {"wrapping_algorithm": 1},
    "Imports.ImportKeyMaterial": lambda *_: {"import_token": b"x", "encrypted_key_material": b"x"},
    "Keys.UpdateKeyAlias": lambda *_: {"key_alias": fresh()},
    "Keys.UpdateKeyDescription": lambda *_: {"key_description": "x"},
    "Macs.GenerateMac": lambda *_: {"message": b"x", "mac_algorithm": 1},
    "Macs.VerifyMac": lambda *_: {"message": b"x", "mac_algorithm": 1, "mac": b"x"},
    "Regions.ReplicateKey": lambda *_: {
        "replica_region": "nowhere",
        "key_alias": fresh(),
        "replica_project_id": "0" * 32,
    },
    "Regions.UpdatePrimaryRegion": lambda *_: {"primary_region": "nowhere"},
    "Rotation.UpdateKeyRotationInterval": lambda *_: {"rotation_interval": 30},
    "Signing.Sign": lambda *_: {**SIGNED},
    "Signing.Verify": lambda *_: {**SIGNED, "signature": b"x"},
    "Tags.CreateTag": lambda *_: {"tag": {"key": "a", "value": "b"}},
    "Tags.DeleteTag": lambda *_: {"key": "none"},
    "Tags.BatchTags": lambda *_: {"action": 1, "tags": [{"key": "a", "value": "b"}]},
}
# What leaves the key another one: each such call, where it is allowed, gets a key of its own.
CHANGES = re.compile(r"Schedule|Cancel|Disable|Enable|Rotat|Create(Alias|Tag|Grant)|Batch|UpdateKeyAlias")


# Callers


@dataclass
class Caller:
    """Somebody of a role, and how it shows that by each kind of identity."""

    user_id: str
    agency_id: str
    show: dict[str, Callable[[Method, Any], tuple[grpc.Channel, Metadata]]]

    def principal(self, kind: str) -> str:
        """To whom a grant is given."""
        return self.agency_id if kind == "agency" else self.user_id


def _signature(access: str, secret: str, token: str, method: Method, request: Any) -> Metadata:
    date = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    headers = [("host", "x"), ("x-sdk-date", date), *([("x-security-token", token)] if token else [])]
    verb_and_path = signed_beginning(method.routes[0], request) or "\n\n"
    lines = [*verb_and_path.split("\n")[:2], ""]
    lines += [f"{name}:{value}" for name, value in headers]
    lines += ["", ";".join(name for name, _ in headers), hashlib.sha256(b"").hexdigest()]
    canonical = "\n".join(lines).encode()
    text = f"SDK-HMAC-SHA256\n{date}\n{hashlib.sha256(canonical).hexdigest()}"
    signature = hmac.new(secret.encode(), text.encode(), "sha256").hexdigest()
    more = (("hsmd-security-token", token),) if token else ()
    return (
        SOURCE,
        ("hsmd-access-key", access),
        ("hsmd-sdk-date", date),
        ("hsmd-canonical-request-bin", canonical),
        ("hsmd-signature", signature),
        *more,
    )


class Cast:
    """Everybody who plays, on a daemon of their own."""

    def __init__(self, stand: Stand, folder: Path) -> None:
        self.stand = stand
        self._folder = folder
        self._tls = stand.dev.ca.parent
        self._gateway = self._channel("gateway-client")
        self._listeners: list[str] = []
        self.callers = {"nobody": Caller("", "", {"nothing": lambda *_: (self._gateway, (SOURCE,))})}

    def _channel(self, name: str) -> grpc.Channel:
        pair = ((self._tls / f"{name}.key").read_bytes(), (self._tls / f"{name}.pem").read_bytes())
        return grpc.secure_channel(
            self.stand.dev.grpc, grpc.ssl_channel_credentials(self.stand.dev.ca.read_bytes(), *pair)
        )

    def hire(self, client: Client, friend: Tenant, letter: str, role: str, *, on_domain: bool) -> None:
        """One user, with everything by which it may show who it is, and one agency of the same role."""
        dev, who = self.stand.dev, person(client)
        place = {} if on_domain else {"project": dev.project_id}
        agency = self._agency(client, friend, letter)
        if role:
            role_id = builtin.BY_NAME[role].id
            wanted: Any = {"user_id": who.id, "role_id": role_id, **place}
            client.assignments.GrantRoleToUser(assignments_pb2.UserRoleRequest(**wanted))
            at = {"domain_id": dev.domain_id} if on_domain else {"project_id": dev.project_id}
            given = assignments_pb2.AgencyRoleRequest(agency_id=agency, role_id=role_id, **at)
            scope = "Domain" if on_domain else "Project"
            getattr(client.assignments, f"GrantRoleToAgencyOn{scope}")(given)
        made = client.access_keys.CreatePermanentAccessKey(
            access_keys_pb2.CreatePermanentAccessKeyRequest(credential={"user_id": who.id})
        ).credential
        own = () if on_domain else (("hsmd-project-id", dev.project_id),)
        show: dict[str, Any] = {
            "access-key": lambda method, request: (
                self._gateway,
                (*_signature(made.access, made.secret, "", method, request), *own),
            )
        }
        if on_domain or role:
            scope_of: Any = None if on_domain else {"project": {"id": dev.project_id}}
            token = login(self.stand, who, scope_of)
            show["token"] = lambda *_: (self._gateway, (SOURCE, ("hsmd-auth-token", token), *own))
            path = "/v3.0/OS-CREDENTIAL/securitytokens"
            key = ask(self.stand, "token", {"id": token}, path=path).json["credential"]
            show["temporary-key"] = lambda method, request: (
                self._gateway,
                (
                    *_signature(key["access"], key["secret"], key["securitytoken"], method, request),
                    *own,
                ),
            )
            assumed = ask(
                self.stand,
                "assume_role",
                {"agency_name": agency_name(letter), "domain_id": dev.domain_id},
                scope_of or {"domain": {"id": dev.domain_id}},
                token=self.friend_token,
            )
            agent = issued(assumed)
            show["agency"] = lambda *_: (self._gateway, (SOURCE, ("hsmd-auth-token", agent), *own))
        if role:
            self._certified(client, letter, who.id, show, own)
        if role and not on_domain:
            socket = self._folder / f"{letter}.sock"
            self._listeners += [
                "[[grpc.unix]]",
                *(f'{name} = "{value}"' for name, value in (("path", socket), ("user_id", who.id))),
                f'project_id = "{dev.project_id}"',
            ]
            show["socket"] = lambda *_: (grpc.insecure_channel(f"unix:{socket}"), own)
        self.callers[letter] = Caller(who.id, agency, show)

    def _certified(
        self, client: Client, letter: str, user_id: str, show: dict[str, Any], own: Metadata
    ) -> None:
        name = f"matrix-{letter}"
        Authority(self._tls, "hsmd development CA").client(name, name)
        mapping = certificates_pb2.CreateCertificateMappingRequest.Mapping(
            name=f"CN:{name}", user_id=user_id, project_id=self.stand.dev.project_id
        )
        client.certificates.CreateCertificateMapping(
            certificates_pb2.CreateCertificateMappingRequest(mapping=mapping)
        )
        channel = self._channel(name)
        show["certificate"] = lambda *_: (channel, own)

    def _agency(self, client: Client, friend: Tenant, letter: str) -> str:
        self.friend_token = login_of(self.stand, friend)
        option = agencies_pb2.CreateAgencyRequest.Option(
            name=agency_name(letter),
            domain_id=self.stand.dev.domain_id,
            trust_domain_id=friend.domain_id,
        )
        request = agencies_pb2.CreateAgencyRequest(agency=option)
        return str(client.agencies.CreateAgency(request).agency.id)

    def open_sockets(self) -> None:
        """The listeners are the configuration's, so the daemon starts anew."""
        with self.stand.dev.config.open("a") as config:
            config.write("\n" + "\n".join(self._listeners) + "\n")
        self.stand.restart_daemon()

    def answer(self, letter: str, kind: str, name: str, request: Any) -> str:
        """The code that the caller gets, OK for none; by that kind, or the next one that the role has."""
        descriptor, method = METHODS[name]
        channel, metadata = self.callers[letter].show[kind](method, request)
        path = f"/{descriptor.containing_service.full_name}/{descriptor.name}"
        try:
            channel.unary_unary(path, None, None)(request.SerializeToString(), metadata=metadata, timeout=60)
        except grpc.RpcError as error:
            return str(from_rpc(error, "").code)
        return "OK"

    def kinds(self, letter: str, name: str) -> list[str]:
        """Those by which the role can call the method at all.

        What has no route can't be signed for, and certificates stand for a project unless the method is the
        domain's.
        """
        method = METHODS[name][1]
        left_out = set() if method.routes else {"access-key", "temporary-key"}
        if letter in ON_DOMAIN and not in_domain(method.action):
            left_out.add("certificate")
        return [kind for kind in KINDS if kind in self.callers[letter].show and kind not in left_out]


def agency_name(letter: str) -> str:
    return f"matrix-{letter}"


def login_of(stand: Stand, who: Tenant) -> str:
    """A token of the tenant's domain."""
    return issued(ask(stand, "password", {"user": {"id": who.user_id, "password": who.password}}))


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cast]:
    settings = {**PATIENT, "HSMD__LIMITS__KEYS_PER_PROJECT": "100000", "HSMD__AUDIT__DURABLE": "false"}
    with standing(tmp_path_factory.mktemp("matrix"), settings) as stand:
        cast = Cast(stand, tmp_path_factory.mktemp("sockets"))
        friend = stand.add_tenant("friend")
        with stand.client() as client:
            for letter, role in ROLES.items():
                cast.hire(client, friend, letter, role, on_domain=False)
            for letter, role in ON_DOMAIN.items():
                cast.hire(client, friend, letter, role, on_domain=True)
        cast.open_sockets()
        yield cast


# Keys of everybody in every state


class Keys:
    """Keys by owner, kind and state, made as they are needed by their owners' administrators."""

    def __init__(self, world: World, owners: dict[str, Client]) -> None:
        self._owners = owners
        self._world = world
        self._made: dict[tuple[str, tuple[str, str], str], str] = {}

    def shared(self, owner: str, kind: tuple[str, str], state: str) -> str:
        """The id of a key that others use, too."""
        place = owner, kind, state
        if place not in self._made:
            self._made[place] = self.new(owner, kind, state)
        return self._made[place]

    def new(
        self,
        owner: str,
        kind: tuple[str, str],
        state: str,
        grant: Callable[[Client, str], object] = lambda *_: None,
    ) -> str:
        """The id of a key that nobody used, granted to somebody before it came to its state."""
        client = self._owners[owner]
        origin = "external" if state == "import" else ""
        key = client.create_key(fresh(), spec=kind[0], usage=kind[1], origin=origin)
        if kind == AES and not origin:
            self._world.ciphertexts[key] = client.encrypt(key, b"x")
        grant(client, key)
        if state == "disabled":
            client.disable(key)
        if state == "deletion":
            client.schedule_deletion(key, 7)
        return key


def granting(principal: str, operation: str) -> Callable[[Client, str], object]:
    """What grants it, never create-grant alone."""
    operations = {operation, "describe-key"}
    wanted = [f"GRANT_OPERATION_{each.upper().replace('-', '_')}" for each in sorted(operations)]
    return lambda client, key: client.grants.CreateGrant(
        grants_pb2.CreateGrantRequest(key_id=key, grantee_principal=principal, operations=wanted)
    )


@pytest.fixture(scope="module")
def matrix(cast: Cast) -> Iterator[tuple[World, Keys]]:
    stand = cast.stand
    foreigner = stand.add_tenant("foreigner")
    with stand.client() as own, stand.client(foreigner) as foreign:
        project = projects_pb2.CreateProjectRequest.Project(
            name=f"{stand.dev.region}_other", domain_id=stand.dev.domain_id
        )
        sibling_id = own.projects.CreateProject(projects_pb2.CreateProjectRequest(project=project)).project.id
        role: Any = {
            "user_id": stand.dev.user_id,
            "role_id": builtin.KMS_ADMINISTRATOR.id,
            "project": sibling_id,
        }
        own.assignments.GrantRoleToUser(assignments_pb2.UserRoleRequest(**role))
        first = own.create_key(fresh())
        alias = f"alias/{fresh()}"
        own.aliases.CreateAlias(aliases_pb2.CreateAliasRequest(key_id=first, alias=alias))
        point = keyspaces.create_point(own, keyspaces.keyspace())
        world = World(alias, own.encrypt(first, b"x"), keyspaces.terms(point))
        with stand.client(project_id=sibling_id) as sibling:
            owners = {"own": own, "sibling": sibling, "foreign": foreign}
            yield world, Keys(world, owners)


def cases(row: Row) -> Iterator[tuple[str, str, str]]:
    """Every ownership, state and role; a grant of another operation is tried on an enabled key."""
    for ownership, state, letter in itertools.product(OWNERSHIPS, STATES, ROLES):
        grantable = state != "import" and (row.grant or state == "enabled")
        if row.states[state] != "." and (ownership != "granted" or grantable):
            yield ownership, state, letter


@pytest.mark.parametrize("name", ROWS)
def test_methods_on_a_key(cast: Cast, matrix: tuple[World, Keys], name: str) -> None:
    world, keys = matrix
    row, (_, method) = ROWS[name], METHODS[name]
    spec = next((each for start, each in KIND_OF_KEY.items() if name.startswith(start)), AES)
    turns = {letter: itertools.cycle(cast.kinds(letter, name)) for letter in ROLES}
    differ = []
    for ownership, state, letter in cases(row):
        kind, expected = next(turns[letter]), row.answer(letter, ownership, state)
        if ownership == "granted":
            grant = granting(cast.callers[letter].principal(kind), row.grant or "describe-key")
            key = keys.new("foreign", spec, state, grant)
        elif expected == "OK" and CHANGES.search(name):
            key = keys.new(ownership, spec, state)
        else:
            key = keys.shared(ownership, spec, state)
        fields = FIELDS[name](world, key) if name in FIELDS else {}
        fields |= {method.resource: key, "project_id": cast.stand.dev.project_id}
        request = method.request(**fields)
        answer = cast.answer(letter, kind, name, request)
        if answer != expected:
            differ.append(f"{ownership} {state} {letter} by {kind}: {answer}, not {expected}")
    assert differ == []


# Methods that are about no key


@pytest.mark.parametrize("name", ALLOWED)
def test_other_methods(cast: Cast, name: str) -> None:
    _, method = METHODS[name]
    (roles, without), found = ALLOWED[name], ""
    for letter in [*ROLES, *ON_DOMAIN]:
        kinds = [kind for kind in cast.kinds(letter, name) if kind not in without]
        answers = {kind: cast.answer(letter, kind, name, method.request()) for kind in kinds}
        through = [kind for kind, code in answers.items() if code not in (REFUSED, NO_PROJECT, "IAM.0003")]
        assert through in ([], kinds), f"{letter} depends on the kind: {answers}"
        found += letter if through else ""
    assert found == ("" if roles == "-" else roles)


@pytest.mark.parametrize("name", [name for name, (_, each) in METHODS.items() if not each.for_gateways])
def test_nobody_gets_nothing(cast: Cast, name: str) -> None:
    """Through a gateway, which itself is somebody for those methods that are left out."""
    _, method = METHODS[name]
    answer = cast.answer("nobody", "nothing", name, method.request())
    assert (answer == "APIGW.0301") is (method.access not in OPEN), answer

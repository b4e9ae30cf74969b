"""As whom client certificates act: exact names, patterns that match what they say only, and nobody else."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from hsmd.client import ApiError, Client
from hsmd.domain.certificates import fits
from hsmd.pb.v1 import certificates_pb2 as pb
from tests.backstage import backstage
from tests.calls import fresh, record, refusal, refused
from tests.credentials import domain_token, signed
from tests.people import Person, login, person
from tests.stand import Stand, Tenant
from tests.test_temporary_keys import by_certificate

PATH = "/v3.0/OS-CERTIFICATE/mappings"


def create(client: Client, name: str, user_id: str, project_id: str) -> Any:
    wanted = pb.CreateCertificateMappingRequest.Mapping(name=name, user_id=user_id, project_id=project_id)
    return client.certificates.CreateCertificateMapping(
        pb.CreateCertificateMappingRequest(mapping=wanted)
    ).mapping


def delete(client: Client, name: str) -> None:
    client.certificates.DeleteCertificateMapping(pb.DeleteCertificateMappingRequest(name=name))


def listed(client: Client) -> list[str]:
    answer = client.certificates.ListCertificateMappings(pb.ListCertificateMappingsRequest())
    return [each.name for each in answer.mappings]


@contextmanager
def mapped(client: Client, name: str, user_id: str, project_id: str) -> Iterator[None]:
    create(client, name, user_id, project_id)
    try:
        yield
    finally:
        delete(client, name)


class Certificates:
    """Client certificates by the development CA, with any subject and alternative names."""

    def __init__(self, stand: Stand, folder: Path) -> None:
        self.stand = stand
        self.folder = folder
        ca = stand.dev.ca.parent
        self.ca = x509.load_pem_x509_certificate((ca / "ca.pem").read_bytes())
        self.key: Any = serialization.load_pem_private_key((ca / "ca.key").read_bytes(), None)

    def client(self, common_name: str, *names: x509.GeneralName) -> Client:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(
                x509.Name(
                    [
                        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example"),
                        x509.NameAttribute(NameOID.COMMON_NAME, common_name),
                    ]
                )
            )
            .issuer_name(self.ca.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        made = builder.sign(self.key, hashes.SHA256())
        stem = self.folder / fresh("certificate")
        certificate, private = stem.with_suffix(".pem"), stem.with_suffix(".key")
        certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return Client(self.stand.dev.grpc, ca=self.stand.dev.ca, certificate=certificate, key=private)


@pytest.fixture(scope="module")
def issue(stand: Stand, tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(stand, tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def ann(stand: Stand, client: Client) -> Person:
    made = person(client)
    backstage(stand, "role", made.id, stand.dev.project_id, "KMS Administrator")
    return made


def refuses(client: Client) -> str:
    with refusal("APIGW.0301") as seen:
        client.random(32)
    return seen.last.message


# Acting as somebody


def test_an_exact_name(
    stand: Stand, client: Client, issue: Certificates, ann: Person, stranger: Tenant
) -> None:
    common = fresh("web")
    with issue.client(common) as web, issue.client(common + "x") as other:
        assert "bound to no user" in refuses(web)
        with mapped(client, f"CN:{common}", ann.id, stand.dev.project_id):
            key_id = web.create_key(fresh())
            refuses(other)
            assert f"CN:{common}" in listed(client)
            (one,) = [each for each in stand.audit() if each["resource"] == key_id]
            assert (one["identity"], one["user_id"]) == ("certificate", ann.id)
        refuses(web)


def test_what_a_certificate_made_ends_with_its_mapping(
    stand: Stand, client: Client, issue: Certificates, ann: Person, stranger: Tenant
) -> None:
    common, project = fresh("job"), stand.dev.project_id

    def status(key: Any) -> set[int]:
        how = {"access_key": key.access, "secret": key.secret}
        sent = [("X-Security-Token", key.securitytoken)]
        return {signed(stand, "GET", "/v3/regions", extra=sent, **how).status for _ in range(4)}

    with issue.client(common) as job:
        with mapped(client, f"CN:{common}", ann.id, project):
            key = by_certificate(job)
            assert status(key) == {200}
        assert status(key) == {401}
        with mapped(client, f"CN:{common}", stand.dev.user_id, project):
            assert status(key) == {401}  # somebody else's now
        with mapped(client, f"CN:{common[:-4]}*", ann.id, project):
            key = by_certificate(job)
            assert status(key) == {200}
            with mapped(client, f"CN:{common}", stand.dev.user_id, project):
                assert status(key) == {401}  # an exact name counts before a pattern
            assert status(key) == {200}
        assert status(key) == {401}


def test_exact_names_of_different_users_are_nobody_s(
    stand: Stand, client: Client, issue: Certificates, ann: Person
) -> None:
    common, project = fresh("two"), stand.dev.project_id
    with (
        issue.client(common, x509.DNSName(f"{common}.example")) as two,
        mapped(client, f"CN:{common}", ann.id, project),
    ):
        two.list_keys()
        with mapped(client, f"DNS:{common}.example", ann.id, project):
            two.list_keys()
        with mapped(client, f"DNS:{common}.example", stand.dev.user_id, project):
            assert "more than one user" in refuses(two)
        two.list_keys()


def test_patterns(stand: Stand, client: Client, issue: Certificates, ann: Person) -> None:
    mark = fresh("p")
    spiffe = x509.UniformResourceIdentifier(f"spiffe://{mark}.example/ns/blue/sa/web")
    cases = {
        f"CN:{mark}-*": (f"{mark}-7", ()),
        f"DNS:*.{mark}.example": ("any", (x509.DNSName(f"web.{mark}.example"),)),
        f"URI:spiffe://{mark}.example/ns/*/sa/*": ("any", (spiffe,)),
        f"SUBJECT:CN={mark}*-web,O=Example": (f"{mark}-7-web", ()),
        f"EMAIL:*@{mark}.example": ("any", (x509.RFC822Name(f"bob@{mark}.example"),)),
    }
    for pattern, (common, names) in cases.items():
        with issue.client(common, *names) as one:
            refuses(one)
            with mapped(client, pattern, ann.id, stand.dev.project_id):
                one.list_keys()
            refuses(one)


def test_an_exact_name_counts_before_a_pattern_and_two_patterns_are_nobody(
    stand: Stand, client: Client, issue: Certificates, ann: Person, stranger: Tenant
) -> None:
    mark = fresh("q")
    project = stand.dev.project_id
    with issue.client(f"{mark}-a-b") as one, mapped(client, f"CN:{mark}-*", ann.id, project):
        one.list_keys()
        with mapped(client, f"CN:{mark}-a-*", ann.id, project):
            one.list_keys()  # both say the same
        with mapped(client, f"CN:{mark}-a-*", stranger.user_id, stranger.project_id):
            assert "more than one user" in refuses(one)
            with mapped(client, f"CN:{mark}-a-b", stranger.user_id, stranger.project_id):
                theirs = one.create_key(fresh())
                assert one.describe_key(theirs).domain_id == stranger.domain_id
            refuses(one)
        one.list_keys()


def test_a_mapping_ends_with_its_user(stand: Stand, client: Client, issue: Certificates) -> None:
    from hsmd.pb.v1 import users_pb2

    bob, mark = person(client), fresh("r")
    backstage(stand, "role", bob.id, stand.dev.project_id, "KMS Administrator")
    create(client, f"CN:{mark}-*", bob.id, stand.dev.project_id)
    with issue.client(f"{mark}-1") as one:
        one.list_keys()
        client.users.DeleteUser(users_pb2.DeleteUserRequest(user_id=bob.id))
        refuses(one)
    assert f"CN:{mark}-*" not in listed(client)


# Matching


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("CN:web-*", "CN:web-1"),
        ("CN:*-web", "CN:1-web"),
        ("CN:a*c", "CN:abbc"),
        ("DNS:*.example.org", "DNS:WEB.example.org"),
        ("DNS:a-*.example.org", "DNS:a-1.Example.ORG"),
        ("URI:spiffe://e/*/web", "URI:spiffe://e/x_1/web"),
        ("EMAIL:*@example.org", "EMAIL:bob@example.org"),
        ("SUBJECT:CN=*,OU=payments,O=Example", "SUBJECT:CN=web-1,OU=payments,O=Example"),
    ],
)
def test_what_fits(pattern: str, name: str) -> None:
    assert fits(pattern, name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("CN:web-*", "CN:web-"),
        ("CN:web-*", "CN:web-1.evil"),
        ("CN:web-*", "CN:web-1 2"),
        ("CN:web-*", "CN:web-\u00e4"),
        ("CN:web-*", "CN:web-1\n"),
        ("CN:web-*", "CN:Web-1"),
        ("CN:web-*", "DNS:web-1"),
        ("CN:web-*", "CN:xweb-1"),
        ("CN:aba*aba", "CN:aba"),
        ("CN:aba*aba", "CN:ababa"),
        ("DNS:*.example.org", "DNS:example.org"),
        ("DNS:*.example.org", "DNS:a.b.example.org"),
        ("DNS:*.example.org", "DNS:web.example.org.evil.net"),
        ("DNS:*.example.org", "DNS:.example.org"),
        ("DNS:*.example.org", "DNS:web.examplexorg"),
        ("URI:spiffe://e/*/web", "URI:spiffe://e/a/b/web"),
        ("URI:spiffe://e/*", "URI:spiffe://e/"),
        ("URI:spiffe://e/*", "URI:spiffe://e/a/../b"),
        ("URI:spiffe://e/*", "URI:spiffe://e/a%2Fb"),
        ("URI:spiffe://e/*", "URI:spiffe://E/a"),
        ("EMAIL:*@example.org", "EMAIL:a@b@example.org"),
        ("SUBJECT:CN=*,O=Example", "SUBJECT:CN=a\\,O=Example"),
        ("SUBJECT:CN=*,O=Example", "SUBJECT:CN=a,OU=b,O=Example"),
        ("SUBJECT:CN=*,O=Example", "SUBJECT:CN=a+OU=b,O=Example"),
        ("SUBJECT:CN=*,O=Example", "SUBJECT:O=Example,CN=a"),
        ("EMAIL:*@example.org", "EMAIL:bob@example.org@evil.net"),
    ],
)
def test_what_does_not_fit(pattern: str, name: str) -> None:
    assert not fits(pattern, name)


@given(st.text(max_size=20), st.text("ab-_.@/ ", max_size=20))
def test_a_star_stands_for_words_only(prefix: str, filling: str) -> None:
    plain = prefix.replace("*", "").replace("\0", "")
    expected = filling != "" and all(each in "ab-_" for each in filling)
    assert fits(f"CN:{plain}*!", f"CN:{plain}{filling}!") is expected


# What may not be


@pytest.mark.parametrize(
    "name",
    [
        "",
        "web-1",
        "CN:",
        "cn:web",
        "IP:127.0.0.1",
        "CN:*",
        "CN:a*",
        "URI:*://*/*",
        "CN:web-*-*",
        "CN:web**",
        "DNS:*.*-*.example.org",
        "CN:we\nb",
        "CN:" + "x" * 600,
    ],
)
def test_names_that_can_be_none(stand: Stand, client: Client, ann: Person, name: str) -> None:
    with pytest.raises(ApiError) as caught:
        create(client, name, ann.id, stand.dev.project_id)
    assert caught.value.code in ("IAM.0073", "KMS.0204")


def test_users_and_projects_must_be_there_and_belong_together(
    stand: Stand, client: Client, ann: Person, stranger: Tenant
) -> None:
    name = "CN:" + fresh()
    for user_id, project_id in (
        ("0" * 32, stand.dev.project_id),
        (ann.id, "0" * 32),
        (ann.id, stranger.project_id),
        (stranger.user_id, stand.dev.project_id),
    ):
        with refusal("IAM.0004"):
            create(client, name, user_id, project_id)
    with refusal("IAM.0004"):
        delete(client, name)
    with mapped(client, name, ann.id, stand.dev.project_id), refusal("IAM.0005"):
        create(client, name, ann.id, stand.dev.project_id)


def test_two_at_once_make_one(stand: Stand, client: Client, ann: Person) -> None:
    name, outcomes = "CN:" + fresh(), []

    def make() -> None:
        try:
            create(client, name, ann.id, stand.dev.project_id)
            outcomes.append("made")
        except ApiError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["IAM.0005"] * 3 + ["made"]
    delete(client, name)


def test_it_is_an_operators_matter(stand: Stand, client: Client, strange: Client, ann: Person) -> None:
    """Whoever administers a domain could else take another domain's clients for its own users."""
    with refusal("IAM.0003"):
        listed(strange)
    token = login(stand, ann)
    mapping = {"name": "CN:" + fresh(), "user_id": ann.id, "project_id": stand.dev.project_id}
    refused(stand.rest("POST", PATH, {"mapping": mapping}, token=token), "IAM.0003")
    refused(stand.rest("GET", PATH, token=token), "IAM.0003")


def test_over_rest(stand: Stand, ann: Person) -> None:
    token = domain_token(stand)
    mapping = {"name": f"URI:spiffe://{fresh()}/*", "user_id": ann.id, "project_id": stand.dev.project_id}
    made = stand.rest("POST", PATH, {"mapping": mapping}, token=token)
    assert (made.status, made.json) == (201, {"mapping": mapping})
    one = record(stand, made.headers["X-Request-Id"])
    assert (one["event"], one["resource"]) == ("createCertificateMapping", f"certificate/{mapping['name']}")
    assert mapping in stand.rest("GET", PATH, token=token).json["mappings"]
    gone = stand.rest("DELETE", f"{PATH}?name={mapping['name']}", token=token)
    assert (gone.status, gone.raw) == (204, b"")
    assert mapping not in stand.rest("GET", PATH, token=token).json["mappings"]

"""Servicer of identity.proto: tokens, and what cloud SDKs look up by themselves."""

from hsmd.api.convert import timestamp
from hsmd.domain import identity
from hsmd.domain.core import Call
from hsmd.domain.identity import Scope
from hsmd.errors import TOKEN_REQUEST_INVALID, Error
from hsmd.pb.v1 import identity_pb2 as pb
from hsmd.store.identity import Domain

SERVICE = pb.DESCRIPTOR.services_by_name["Identity"]


def create_token(call: Call, request: pb.CreateTokenRequest) -> pb.CreateTokenResponse:
    """IAM: POST /v3/auth/tokens, by password, for a project or for no project."""
    auth = request.auth
    if list(auth.identity.methods) != ["password"]:
        raise Error(TOKEN_REQUEST_INVALID, reason='methods ["password"] is due')
    user = auth.identity.password.user
    project = auth.scope.project
    token = identity.issue_token(
        call,
        user_id=user.id,
        user_name=user.name,
        domain=Domain(id=user.domain.id, name=user.domain.name),
        password=user.password,
        scope=Scope(project.id, project.name),
    )
    domain = pb.DomainName(id=token.domain.id, name=token.domain.name)
    described = pb.CreateTokenResponse.Token(
        methods=["password"],
        issued_at=timestamp(token.issued),
        expires_at=timestamp(token.expires),
        user=pb.CreateTokenResponse.User(id=token.user.id, name=token.user.name, domain=domain),
        roles=[pb.CreateTokenResponse.Role(id=name, name=name) for name in token.roles],
    )
    if token.project is not None:
        described.project.CopyFrom(
            pb.CreateTokenResponse.Project(id=token.project.id, name=token.project.name, domain=domain)
        )
    return pb.CreateTokenResponse(subject_token=token.text, token=described)


def list_projects(call: Call, request: pb.ListProjectsRequest) -> pb.ListProjectsResponse:
    """IAM: GET /v3/projects."""
    found = [
        each
        for each in identity.projects(call)
        if request.name in ("", each.name) and request.domain_id in ("", each.domain_id)
    ]
    if request.HasField("enabled") and not request.enabled:
        found = []
    return pb.ListProjectsResponse(
        projects=[
            pb.ListProjectsResponse.Project(
                id=each.id,
                name=each.name,
                domain_id=each.domain_id,
                parent_id=each.domain_id,
                enabled=True,
                links=pb.Links(),
            )
            for each in found
        ],
        links=pb.Links(),
    )


def list_domains(call: Call, request: pb.ListDomainsRequest) -> pb.ListDomainsResponse:
    """IAM: GET /v3/auth/domains."""
    domain = identity.own_domain(call)
    found = []
    if domain:
        described = pb.ListDomainsResponse.Domain(
            id=domain.id, name=domain.name, enabled=True, links=pb.Links()
        )
        found.append(described)
    return pb.ListDomainsResponse(domains=found, links=pb.Links())


def list_regions(call: Call, request: pb.ListRegionsRequest) -> pb.ListRegionsResponse:
    """IAM: GET /v3/regions."""
    name = call.core.region
    region = pb.ListRegionsResponse.Region(
        id=name, type="private", locales=pb.ListRegionsResponse.Locales(en_us=name), links=pb.Links()
    )
    return pb.ListRegionsResponse(regions=[region], links=pb.Links())

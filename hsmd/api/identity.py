"""Servicer of identity.proto: tokens, and what cloud SDKs look up by themselves."""

from datetime import UTC, datetime

from google.protobuf.empty_pb2 import Empty

from hsmd.api.convert import timestamp
from hsmd.domain import identity, projects, tokens
from hsmd.domain.core import Call
from hsmd.domain.projects import Wanted
from hsmd.domain.tokens import Scope, Token
from hsmd.errors import IAM_NOT_FOUND, TOKEN_REQUEST_INVALID, Error
from hsmd.pb.v1 import identity_pb2 as pb
from hsmd.store.identity import Domain, Project

SERVICE = pb.DESCRIPTOR.services_by_name["Identity"]


def create_token(call: Call, request: pb.CreateTokenRequest) -> pb.CreateTokenResponse:
    """IAM: POST /v3/auth/tokens, by one of its methods, for a project or for a domain."""
    proof = request.auth.identity
    scope = Scope(
        request.auth.scope.project.id,
        request.auth.scope.project.name,
        request.auth.scope.domain.id,
        request.auth.scope.domain.name,
    )
    methods = list(proof.methods)
    if len(methods) != 1 or methods[0] not in tokens.METHODS or not proof.HasField(methods[0]):
        due = ", ".join(tokens.METHODS)
        raise Error(
            TOKEN_REQUEST_INVALID, reason=f"methods with one of {due}, and what belongs to it, is due"
        )
    if methods == [tokens.PASSWORD]:
        user = proof.password.user
        token = tokens.issue_by_password(
            call,
            user_id=user.id,
            user_name=user.name,
            domain=Domain(id=user.domain.id, name=user.domain.name),
            password=user.password,
            scope=scope,
        )
    elif methods == [tokens.ACCESS_KEY]:
        shown = proof.hw_ak_sk
        token = tokens.issue_by_access_key(
            call, access_key=shown.access.key, secret=shown.secret.key, scope=scope
        )
    elif methods == [tokens.BY_TOKEN]:
        token = tokens.issue_by_token(call, text=proof.token.id, scope=scope)
    else:
        role = proof.assume_role
        home = Domain(id=role.domain_id, name=role.domain_name)
        token = tokens.issue_as_agency(call, agency_name=role.agency_name, domain=home, scope=scope)
    return pb.CreateTokenResponse(subject_token=token.text, token=_described(token))


def show_token(call: Call, request: pb.ShowTokenRequest) -> pb.ShowTokenResponse:
    """IAM: GET /v3/auth/tokens."""
    token = tokens.show(call, request.subject_token)
    return pb.ShowTokenResponse(subject_token=token.text, token=_described(token))


def check_token(call: Call, request: pb.CheckTokenRequest) -> pb.CheckTokenResponse:
    """IAM: HEAD /v3/auth/tokens."""
    tokens.show(call, request.subject_token)
    return pb.CheckTokenResponse()


def revoke_token(call: Call, request: pb.RevokeTokenRequest) -> Empty:
    """IAM: DELETE /v3/auth/tokens."""
    tokens.revoke(call, request.subject_token)
    return Empty()


def revoke_user_tokens(call: Call, request: pb.RevokeUserTokensRequest) -> Empty:
    """All tokens and temporary access keys of a user."""
    tokens.revoke_all(call, request.user_id)
    return Empty()


def list_projects(call: Call, request: pb.ListProjectsRequest) -> pb.ListProjectsResponse:
    """IAM: GET /v3/projects."""
    wanted = Wanted(
        domain_id=request.domain_id,
        name=request.name,
        parent_id=request.parent_id,
        enabled=request.enabled if request.HasField("enabled") else None,
        page=request.page if request.HasField("page") else None,
        per_page=request.per_page if request.HasField("per_page") else None,
    )
    found = projects.find(call, wanted)
    if request.HasField("is_domain") and request.is_domain:
        found = []
    return pb.ListProjectsResponse(projects=[_project(each) for each in found], links=pb.Links())


def list_auth_projects(call: Call, request: pb.ListAuthProjectsRequest) -> pb.ListAuthProjectsResponse:
    """IAM: GET /v3/auth/projects."""
    found = projects.own(call)
    return pb.ListAuthProjectsResponse(projects=[_project(each) for each in found], links=pb.Links())


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
    return pb.ListRegionsResponse(regions=[_region(call.core.region)], links=pb.Links())


def show_region(call: Call, request: pb.ShowRegionRequest) -> pb.ShowRegionResponse:
    """IAM: GET /v3/regions/{region_id}."""
    if request.region_id != call.core.region:
        raise Error(IAM_NOT_FOUND, kind="region", id=request.region_id)
    return pb.ShowRegionResponse(region=_region(call.core.region))


def _project(row: Project) -> pb.ListProjectsResponse.Project:
    return pb.ListProjectsResponse.Project(
        id=row.id,
        name=row.name,
        domain_id=row.domain_id,
        parent_id=row.parent_id or row.domain_id,
        description=row.description or "",
        enabled=row.is_enabled,
        is_domain=False,
        links=pb.Links(),
    )


def _described(token: Token) -> pb.Token:
    domain = _domain(token.domain)
    described = pb.Token(
        methods=[token.method],
        issued_at=timestamp(token.issued),
        expires_at=timestamp(token.expires),
        roles=[pb.Token.Role(id=each.role_id, name=each.name) for each in token.roles],
    )
    who = pb.TokenUser(id=token.id, name=token.name, domain=domain)
    if token.assumed_by is None:
        who.password_expires_at = _ending(token)
    else:
        user = token.assumed_by
        home = _domain(token.home)
        assumed_by = pb.TokenUser(id=user.id, name=user.name, domain=home, password_expires_at=_ending(token))
        described.assumed_by.user.CopyFrom(assumed_by)
    described.user.CopyFrom(who)
    if token.project is None:
        described.domain.CopyFrom(domain)
    else:
        project = pb.Token.Project(id=token.project.id, name=token.project.name, domain=domain)
        described.project.CopyFrom(project)
    return described


def _domain(domain: Domain) -> pb.DomainName:
    return pb.DomainName(id=domain.id, name=domain.name)


def _ending(token: Token) -> str:
    """When the password expires, as IAM writes it; "" when it does not."""
    if token.password_expires is None:
        return ""
    ending = datetime.fromtimestamp(token.password_expires / 1000, UTC)
    return ending.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _region(name: str) -> pb.ListRegionsResponse.Region:
    return pb.ListRegionsResponse.Region(
        id=name, type="private", locales=pb.ListRegionsResponse.Locales(en_us=name), links=pb.Links()
    )

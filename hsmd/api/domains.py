"""Servicer of domains.proto."""

from hsmd.api.convert import timestamp
from hsmd.api.projects import resource
from hsmd.domain import domains
from hsmd.domain.core import Call
from hsmd.pb.v1 import domains_pb2 as pb
from hsmd.pb.v1.projects_pb2 import Quotas
from hsmd.store.identity import Domain

SERVICE = pb.DESCRIPTOR.services_by_name["Domains"]


def create_domain(call: Call, request: pb.CreateDomainRequest) -> pb.CreateDomainResponse:
    """A domain, its first project and the user who administers it."""
    made = domains.create(
        call,
        name=request.name,
        description=request.description,
        project=request.project,
        user=request.user,
        password=request.password,
    )
    return pb.CreateDomainResponse(
        domain=_domain(made.domain), project_id=made.project.id, user_id=made.owner.id
    )


def list_all_domains(call: Call, request: pb.ListAllDomainsRequest) -> pb.ListAllDomainsResponse:
    """All domains, by name."""
    return pb.ListAllDomainsResponse(domains=[_domain(each) for each in domains.every(call)])


def show_domain(call: Call, request: pb.ShowDomainRequest) -> pb.ShowDomainResponse:
    """One domain."""
    return pb.ShowDomainResponse(domain=_domain(domains.show(call, request.domain_id)))


def update_domain(call: Call, request: pb.UpdateDomainRequest) -> pb.UpdateDomainResponse:
    """Another description; enabled or not."""
    changed = domains.update(
        call,
        request.domain_id,
        description=request.description if request.HasField("description") else None,
        enabled=request.enabled if request.HasField("enabled") else None,
    )
    return pb.UpdateDomainResponse(domain=_domain(changed))


def show_domain_quota(call: Call, request: pb.ShowDomainQuotaRequest) -> pb.ShowDomainQuotaResponse:
    """IAM: GET /v3.0/OS-QUOTA/domains/{domain_id}."""
    found = domains.quotas(call, request.domain_id, request.type)
    resources = [resource(each.kind, each.quota, each.used) for each in found]
    return pb.ShowDomainQuotaResponse(quotas=Quotas(resources=resources))


def _domain(row: Domain) -> pb.Domain:
    return pb.Domain(
        id=row.id,
        name=row.name,
        description=row.description or "",
        enabled=row.is_enabled,
        owner_id=row.owner_id or "",
        create_time=timestamp(row.created),
    )

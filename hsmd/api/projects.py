"""Servicer of projects.proto."""

from google.protobuf.empty_pb2 import Empty

from hsmd.domain import projects
from hsmd.domain.core import Call
from hsmd.pb.v1 import projects_pb2 as pb
from hsmd.pb.v1.identity_pb2 import Links
from hsmd.store.identity import Project

SERVICE = pb.DESCRIPTOR.services_by_name["Projects"]


def create_project(call: Call, request: pb.CreateProjectRequest) -> pb.CreateProjectResponse:
    """IAM: POST /v3/projects."""
    given = request.project
    made = projects.create(
        call, given.domain_id, name=given.name, parent_id=given.parent_id, description=given.description
    )
    return pb.CreateProjectResponse(project=_project(made))


def show_project(call: Call, request: pb.ShowProjectRequest) -> pb.ShowProjectResponse:
    """IAM: GET /v3/projects/{project_id}, GET /v3-ext/projects/{project_id}."""
    return pb.ShowProjectResponse(project=_project(projects.show(call, request.id)))


def update_project(call: Call, request: pb.UpdateProjectRequest) -> pb.UpdateProjectResponse:
    """IAM: PATCH /v3/projects/{project_id}."""
    given = request.project
    changed = projects.update(
        call,
        request.id,
        name=given.name if given.HasField("name") else None,
        description=given.description if given.HasField("description") else None,
    )
    return pb.UpdateProjectResponse(project=_project(changed))


def update_project_status(call: Call, request: pb.UpdateProjectStatusRequest) -> Empty:
    """IAM: PUT /v3-ext/projects/{project_id}."""
    projects.set_status(call, request.id, request.project.status)
    return Empty()


def delete_project(call: Call, request: pb.DeleteProjectRequest) -> Empty:
    """IAM: DELETE /v3/projects/{project_id}."""
    projects.delete(call, request.id)
    return Empty()


def list_projects_for_user(
    call: Call, request: pb.ListProjectsForUserRequest
) -> pb.ListProjectsForUserResponse:
    """IAM: GET /v3/users/{user_id}/projects."""
    found = projects.of_user(call, request.user_id)
    return pb.ListProjectsForUserResponse(projects=[_project(each) for each in found], links=Links())


def show_project_quota(call: Call, request: pb.ShowProjectQuotaRequest) -> pb.ShowProjectQuotaResponse:
    """IAM: GET /v3.0/OS-QUOTA/projects/{project_id}."""
    quota, used = projects.quota(call, request.id)
    return pb.ShowProjectQuotaResponse(quotas=pb.Quotas(resources=[resource("project", quota, used)]))


def resource(kind: str, quota: int, used: int) -> pb.Quotas.Resource:
    """A quota as the API shows it; who operates the daemon settles it, so there is no range."""
    return pb.Quotas.Resource(type=kind, quota=quota, used=used, min=0, max=quota)


def _project(row: Project) -> pb.Project:
    return pb.Project(
        id=row.id,
        name=row.name,
        domain_id=row.domain_id,
        parent_id=row.parent_id or row.domain_id,
        description=row.description or "",
        enabled=row.is_enabled,
        is_domain=False,
        status=projects.NORMAL if row.is_enabled else projects.SUSPENDED,
        links=Links(),
    )

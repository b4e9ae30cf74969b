"""Projects: made, shown, listed, suspended and removed; nobody acts where there is none, or none any more."""

from typing import Any

import huaweicloudsdkiam.v3 as iam
import pytest
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException

from hsmd.client import Client
from hsmd.pb.v1 import deletion_pb2, identity_pb2
from hsmd.pb.v1 import projects_pb2 as pb
from tests.backstage import backstage
from tests.calls import fresh, record, refusal, refused
from tests.people import iam_client, login, name, person
from tests.stand import Stand, Tenant, standing
from tests.test_sdk import checked
from tests.test_users import domain_token

LEFT_OUT = frozenset({"Links.previous", "Links.next", "KeystoneUpdateProjectResult.extra"})


def made(client: Client, **changes: Any) -> pb.Project:
    given = {"name": name("project"), **changes}
    request = pb.CreateProjectRequest(project=pb.CreateProjectRequest.Project(**given))
    project: pb.Project = client.projects.CreateProject(request).project
    return project


@pytest.fixture
def project(client: Client) -> pb.Project:
    return made(client)


def test_the_sdk_makes_shows_and_changes_a_project(stand: Stand) -> None:
    admin = iam_client(stand)
    option = iam.KeystoneCreateProjectOption(
        name=name(f"{stand.dev.region}_project"),
        parent_id=stand.dev.project_id,
        domain_id=stand.dev.domain_id,
        description="one",
    )
    request = iam.KeystoneCreateProjectRequest(body=iam.KeystoneCreateProjectRequestBody(project=option))
    project = checked(admin.keystone_create_project(request), absent=LEFT_OUT).project
    assert (project.name, project.description) == (option.name, "one")
    assert (project.parent_id, project.domain_id) == (stand.dev.project_id, stand.dev.domain_id)
    assert (project.enabled, project.is_domain) == (True, False)
    shown = checked(
        admin.keystone_show_project(iam.KeystoneShowProjectRequest(project_id=project.id)), absent=LEFT_OUT
    ).project
    assert (shown.id, shown.name) == (project.id, project.name)
    update = iam.KeystoneUpdateProjectOption(name=name("renamed"), description="two")
    changed = checked(
        admin.keystone_update_project(
            iam.KeystoneUpdateProjectRequest(
                project_id=project.id, body=iam.KeystoneUpdateProjectRequestBody(project=update)
            )
        ),
        absent=LEFT_OUT,
    ).project
    assert (changed.name, changed.description) == (update.name, "two")
    details = checked(
        admin.show_project_details_and_status(iam.ShowProjectDetailsAndStatusRequest(project_id=project.id)),
        absent=LEFT_OUT,
    ).project
    assert (details.id, details.status) == (project.id, "normal")
    (quota,) = checked(
        admin.show_project_quota(iam.ShowProjectQuotaRequest(project_id=project.id))
    ).quotas.resources
    assert (quota.type, quota.quota, quota.max) == ("project", 200, 200)
    assert 2 <= quota.used <= 200


def test_the_sdk_lists_projects(stand: Stand) -> None:
    admin = iam_client(stand)
    with stand.client() as client:
        one, two = sorted((made(client) for _ in range(2)), key=lambda each: each.name)
        below = made(client, parent_id=one.id)

    def listed(**wanted: Any) -> list[str]:
        request = iam.KeystoneListProjectsRequest(**wanted)
        found = checked(admin.keystone_list_projects(request), absent=LEFT_OUT)
        return [each.id for each in found.projects]

    assert {one.id, two.id, below.id, stand.dev.project_id} <= set(listed())
    assert listed(name=one.name) == [one.id]
    assert listed(parent_id=one.id) == [below.id]
    assert below.id not in listed(parent_id=stand.dev.domain_id)
    assert listed(domain_id="0" * 32) == []
    assert listed(is_domain=True) == []
    everything = listed()
    assert listed(page=1, per_page=2) + listed(page=2, per_page=2) == everything[:4]
    assert listed(page=1000, per_page=5000) == []
    for wrong in ({"page": 1}, {"per_page": 5}, {"page": 0, "per_page": 5}, {"page": 1, "per_page": 5001}):
        with pytest.raises(ClientRequestException) as caught:
            listed(**wrong)
        assert caught.value.status_code == 400


def test_one_sees_where_one_has_a_role(stand: Stand, client: Client, project: pb.Project) -> None:
    bob = person(client)
    token = login(stand, bob)
    assert stand.rest("GET", "/v3/projects", token=token).json["projects"] == []
    refused(stand.rest("GET", f"/v3/projects/{project.id}", token=token), "IAM.0003")
    backstage(stand, "role", bob.id, project.id, "KMS Administrator")
    for path in ("/v3/projects", "/v3/auth/projects", f"/v3/users/{bob.id}/projects"):
        found = stand.rest("GET", path, token=token).json["projects"]
        assert [each["id"] for each in found] == [project.id], path
    assert stand.rest("GET", f"/v3/projects/{project.id}", token=token).json["project"]["id"] == project.id
    request = pb.ListProjectsForUserRequest(user_id=bob.id)
    assert [each.id for each in client.projects.ListProjectsForUser(request).projects] == [project.id]
    request = pb.ListProjectsForUserRequest(user_id=stand.dev.user_id)
    own = {each.id for each in client.projects.ListProjectsForUser(request).projects}
    assert stand.dev.project_id in own
    refused(stand.rest("GET", f"/v3/users/{stand.dev.user_id}/projects", token=token), "IAM.0003")


def test_in_a_suspended_project_nobody_acts(stand: Stand, client: Client, project: pb.Project) -> None:
    admin, bob = iam_client(stand), person(client)
    backstage(stand, "role", bob.id, project.id, "KMS Administrator")
    token = login(stand, bob, {"project": {"id": project.id}})
    assert stand.kms("list-keys", {}, token=token, project=project.id).status == 200

    def set_status(status: str) -> int:
        body = iam.UpdateProjectStatusRequestBody(project=iam.UpdateProjectOption(status=status))
        request = iam.UpdateProjectStatusRequest(project_id=project.id, body=body)
        code: int = admin.update_project_status(request).status_code
        return code

    assert set_status("suspended") == 204
    for _ in range(12):  # on every worker
        refused(stand.kms("list-keys", {}, token=token, project=project.id), "KMS.0307")
    shown = client.projects.ShowProject(pb.ShowProjectRequest(id=project.id)).project
    assert (shown.enabled, shown.status) == (False, "suspended")
    listed = client.identity.ListProjects(identity_pb2.ListProjectsRequest(enabled=False)).projects
    assert project.id in {each.id for each in listed}
    assert set_status("normal") == 204
    assert stand.kms("list-keys", {}, token=token, project=project.id).status == 200
    with pytest.raises(ClientRequestException) as caught:
        set_status("asleep")
    assert caught.value.status_code == 400


def test_a_project_with_keys_stays(stand: Stand, client: Client, project: pb.Project) -> None:
    backstage(stand, "role", stand.dev.user_id, project.id, "KMS Administrator")
    with stand.client(project_id=project.id) as there:
        key = there.create_key(fresh())
        with refusal("IAM.0101") as seen:
            client.projects.DeleteProject(pb.DeleteProjectRequest(id=project.id))
        assert "keys live in it" in seen.last.message
        there.deletion.ScheduleKeyDeletion(
            deletion_pb2.ScheduleKeyDeletionRequest(key_id=key, pending_days=7)
        )
        with refusal("IAM.0101"):
            client.projects.DeleteProject(pb.DeleteProjectRequest(id=project.id))
    shown = client.projects.ShowProject(pb.ShowProjectRequest(id=project.id)).project
    assert shown.name == project.name


def test_what_else_keeps_a_project(stand: Stand, client: Client, project: pb.Project) -> None:
    below = made(client, parent_id=project.id)
    with refusal("IAM.0101") as seen:
        client.projects.DeleteProject(pb.DeleteProjectRequest(id=project.id))
    assert "below" in seen.last.message
    client.projects.DeleteProject(pb.DeleteProjectRequest(id=below.id))
    client.projects.DeleteProject(pb.DeleteProjectRequest(id=project.id))
    with refusal("IAM.0004"):
        client.projects.ShowProject(pb.ShowProjectRequest(id=project.id))
    tenant = stand.add_tenant("lonely")
    with stand.client(tenant) as lonely, refusal("IAM.0101") as seen:
        lonely.projects.DeleteProject(pb.DeleteProjectRequest(id=tenant.project_id))
    assert "certificates" in seen.last.message


def test_removing_a_project_takes_the_roles_in_it(stand: Stand, client: Client, project: pb.Project) -> None:
    bob = person(client)
    backstage(stand, "role", bob.id, project.id, "KMS Administrator")
    token = login(stand, bob, {"project": {"id": project.id}})
    answer = stand.rest("DELETE", f"/v3/projects/{project.id}", token=domain_token(stand))
    assert answer.status == 204
    one = record(stand, answer.headers["X-Request-Id"])
    assert (one["event"], one["resource"]) == ("deleteProject", f"project/{project.id}")
    for _ in range(6):
        refused(stand.kms("list-keys", {}, token=token, project=project.id), "KMS.0307")
    again = made(client, name=project.name)
    assert again.id != project.id


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"name": ""}, "KMS.0204"),
        ({"name": "a b"}, "IAM.0073"),
        ({"name": "pröject"}, "IAM.0073"),
        ({"name": "a" * 65}, "KMS.0308"),
        ({"description": "x" * 256}, "KMS.0308"),
        ({"domain_id": "0" * 32}, "IAM.0004"),
        ({"parent_id": "0" * 32}, "IAM.0004"),
    ],
)
def test_bad_input(client: Client, changes: dict[str, Any], code: str) -> None:
    with refusal(code):
        made(client, **changes)


def test_names_and_levels(client: Client, project: pb.Project) -> None:
    with refusal("IAM.0005"):
        made(client, name=project.name)
    below = made(client, parent_id=project.id)
    with refusal("IAM.0073"):
        made(client, parent_id=below.id)
    request = pb.UpdateProjectRequest(id=below.id, project=pb.UpdateProjectRequest.Project(name=project.name))
    with refusal("IAM.0005"):
        client.projects.UpdateProject(request)


@pytest.mark.parametrize("body", [b"", {}, {"project": []}, {"project": {"name": 7}}, {"project": {}}])
def test_bad_bodies(stand: Stand, body: object) -> None:
    refused(stand.rest("POST", "/v3/projects", body, token=domain_token(stand)), "IAM.0011")


def test_others_projects_look_like_none(
    client: Client, strange: Client, project: pb.Project, stranger: Tenant
) -> None:
    for project_id in (project.id, "0" * 32):
        with refusal("IAM.0004") as seen:
            strange.projects.ShowProject(pb.ShowProjectRequest(id=project_id))
        assert seen.last.message == f"Could not find project: {project_id}."
        with refusal("IAM.0004"):
            strange.projects.DeleteProject(pb.DeleteProjectRequest(id=project_id))
        with refusal("IAM.0004"):
            made(strange, parent_id=project_id)
        with refusal("IAM.0004"):
            strange.projects.ShowProjectQuota(pb.ShowProjectQuotaRequest(id=project_id))
    theirs = strange.identity.ListProjects(identity_pb2.ListProjectsRequest()).projects
    assert [each.id for each in theirs] == [stranger.project_id]


def test_the_quota_and_a_restart(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = {"HSMD__LIMITS__PROJECTS_PER_DOMAIN": "2"}
    with standing(tmp_path_factory.mktemp("projects"), settings, gateway=False) as small:
        with small.client() as client:
            project = made(client, description="kept")
            with refusal("IAM.0103"):
                made(client)
        small.restart_daemon()
        with small.client() as client:
            shown = client.projects.ShowProject(pb.ShowProjectRequest(id=project.id)).project
            assert (shown.name, shown.description) == (project.name, "kept")

"""What tests of policies share: policies, and somebody whose rights are what one says."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import huaweicloudsdkiam.v3 as iam
import pytest

from hsmd.client import Client
from hsmd.pb.v1 import (
    assignments_pb2,
    groups_pb2,
    policies_pb2,
)
from tests.people import Person, login, name, person
from tests.stand import Stand

STATEMENTS = ("PolicyStatement", "ServiceStatement", "CustomStatement")

# What IAM may leave out, and we do.
LEFT_OUT = frozenset(
    {
        *("Links.previous", "Links.next", "RolePolicy.depends"),
        *(f"{kind}.{each}" for kind in STATEMENTS for each in ("condition", "resource")),
        *("RoleResult.created_time", "RoleResult.updated_time"),
        *(f"RoleAssignmentBody.{each}" for each in ("user", "group", "agency")),
        *(f"RoleAssignmentScope.{each}" for each in ("project", "domain", "enterprise_project")),
    }
)

LOOK = {"Effect": "Allow", "Action": ["kms:cmk:get", "kms:cmk:list"]}


PERMISSION = "KMS.0330"


def document(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "1.1", "Statement": list(statements)})


def made(client: Client, *statements: dict[str, Any], on: str = "XA") -> policies_pb2.Role:
    """A policy of these statements, over gRPC."""
    role = policies_pb2.CreatePolicyRequest.Role(
        display_name=name("policy"), type=on, policy=document(*statements)
    )
    found: policies_pb2.Role = client.policies.CreatePolicy(policies_pb2.CreatePolicyRequest(role=role)).role
    return found


def new_group(client: Client) -> str:
    """The id of a group that nobody else has."""
    group = groups_pb2.CreateGroupRequest.Group(name=name("group"))
    return str(client.groups.CreateGroup(groups_pb2.CreateGroupRequest(group=group)).group.id)


def role_of_user(**fields: Any) -> assignments_pb2.UserRoleRequest:
    """Who and where."""
    return assignments_pb2.UserRoleRequest(**fields)


def changed(client: Client, role_id: str, *statements: dict[str, Any]) -> None:
    """The policy says this now."""
    role = policies_pb2.UpdatePolicyRequest.Role(policy=document(*statements))
    client.policies.UpdatePolicy(policies_pb2.UpdatePolicyRequest(role_id=role_id, role=role))


@dataclass(frozen=True)
class Worker:
    """Somebody new whose rights are what a policy says: a token in the project, over REST."""

    stand: Stand
    who: Person
    policy: str
    token: str

    def __call__(self, operation: str, body: object, source: str = "127.0.0.1") -> Any:
        return self.stand.kms(operation, body, token=self.token, source=source)


@pytest.fixture
def worker(stand: Stand, client: Client) -> Callable[..., Worker]:
    """Makes one."""

    def make(*statements: dict[str, Any]) -> Worker:
        who, role = person(client), made(client, *statements)
        request = role_of_user(user_id=who.id, role_id=role.id, project=stand.dev.project_id)
        client.assignments.GrantRoleToUser(request)
        token = login(stand, who, {"project": {"id": stand.dev.project_id}})
        return Worker(stand, who, role.id, token)

    return make


def on(*keys: str) -> dict[str, list[str]]:
    return {"Resource": [f"KMS:*:*:KeyId:{key}" for key in keys]}


def statement_of(tree: dict[str, Any]) -> iam.ServiceStatement:
    return iam.ServiceStatement(
        action=tree["Action"],
        effect=tree["Effect"],
        condition=tree.get("Condition"),
        resource=tree.get("Resource"),
    )

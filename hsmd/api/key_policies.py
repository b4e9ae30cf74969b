"""Servicer of key_policies.proto."""

from google.protobuf.empty_pb2 import Empty

from hsmd.api.convert import timestamp
from hsmd.domain import key_policies
from hsmd.domain.core import Call
from hsmd.domain.key_policies import Terms
from hsmd.pb.v1 import key_policies_pb2 as pb
from hsmd.pb.v1.access_points_pb2 import PageInfo
from hsmd.store.key_policies import KeyPolicy

SERVICE = pb.DESCRIPTOR.services_by_name["KeyPolicies"]


def create_key_policy(call: Call, request: pb.CreateKeyPolicyRequest) -> pb.CreateKeyPolicyResponse:
    """DEW: create key policy."""
    policy = key_policies.create(
        call, request.keyspace_id, request.policy_name, request.policy, request.description
    )
    return pb.CreateKeyPolicyResponse(policy_id=policy.id)


def list_key_policies(call: Call, request: pb.ListKeyPoliciesRequest) -> pb.ListKeyPoliciesResponse:
    """DEW: list key policies."""
    limit = request.limit if request.HasField("limit") else None
    page = key_policies.page(call, request.keyspace_id, limit=limit, marker=request.marker)
    return pb.ListKeyPoliciesResponse(
        page_info=PageInfo(next_marker=page.next_marker, current_count=len(page.things)),
        keyspace_policies=[_listed(each) for each in page.things],
    )


def show_key_policy(call: Call, request: pb.ShowKeyPolicyRequest) -> pb.KeyPolicy:
    """DEW: show key policy."""
    policy = key_policies.show(call, request.policy_id)
    return pb.KeyPolicy(
        policy_id=policy.id,
        policy_name=policy.name,
        keyspace_id=policy.keyspace_id,
        policy=_terms(policy),
        description=policy.description,
        created_by=policy.created_by,
        create_time=timestamp(policy.created),
        last_modify_time=timestamp(policy.updated),
        last_access_time=timestamp(policy.accessed),
    )


def update_key_policy(call: Call, request: pb.UpdateKeyPolicyRequest) -> pb.UpdateKeyPolicyResponse:
    """DEW: update key policy."""
    description = request.description if request.HasField("description") else None
    policy = key_policies.update(call, request.policy_id, request.policy, description)
    return pb.UpdateKeyPolicyResponse(
        policy_id=policy.id,
        policy=_terms(policy),
        description=policy.description,
        last_modify_time=timestamp(policy.updated),
    )


def delete_key_policy(call: Call, request: pb.DeleteKeyPolicyRequest) -> Empty:
    """DEW: delete key policy."""
    key_policies.delete(call, request.policy_id)
    return Empty()


def _terms(policy: KeyPolicy) -> pb.PolicyTerms:
    terms = key_policies.terms_of(policy)
    return pb.PolicyTerms(
        version=terms.version, validity_period=_period(terms), allowed_access_point=terms.points
    )


def _listed(policy: KeyPolicy) -> pb.ListedKeyPolicy:
    terms = key_policies.terms_of(policy)
    return pb.ListedKeyPolicy(
        policy_id=policy.id,
        policy_name=policy.name,
        keyspace_id=policy.keyspace_id,
        policy=pb.ListedPolicyTerms(
            version=terms.version, validity_period=_period(terms), allowed_access_point=terms.points
        ),
        description=policy.description,
        created_by=policy.created_by,
        create_time=timestamp(policy.created),
        last_modify_time=timestamp(policy.updated),
        last_access_time=timestamp(policy.accessed),
    )


def _period(terms: Terms) -> pb.ValidityPeriod:
    return pb.ValidityPeriod(
        start_time=None if terms.starts is None else key_policies.time(terms.starts),
        end_time=None if terms.ends is None else key_policies.time(terms.ends),
    )

"""Servicer of aliases.proto."""

from google.protobuf.empty_pb2 import Empty

from hsmd.api.convert import timestamp
from hsmd.domain import aliases
from hsmd.domain.core import Call
from hsmd.pb.v1 import aliases_pb2 as pb
from hsmd.store.aliases import Alias

SERVICE = pb.DESCRIPTOR.services_by_name["Aliases"]


def create_alias(call: Call, request: pb.CreateAliasRequest) -> pb.Alias:
    """DEW: create-alias."""
    return _alias(call, aliases.create(call, request.key_id, request.alias))


def delete_alias(call: Call, request: pb.DeleteAliasRequest) -> Empty:
    """DEW: delete-alias."""
    aliases.delete(call, request.key_id, request.aliases)
    return Empty()


def associate_alias(call: Call, request: pb.AssociateAliasRequest) -> pb.Alias:
    """DEW: associate-alias."""
    return _alias(call, aliases.associate(call, request.alias, request.target_key_id))


def list_aliases(call: Call, request: pb.ListAliasesRequest) -> pb.ListAliasesResponse:
    """DEW: list-aliases."""
    limit = request.limit if request.HasField("limit") else None
    page = aliases.list_aliases(call, request.key_id, limit=limit, marker=request.marker)
    info = pb.ListAliasesResponse.PageInfo(next_marker=page.next_marker, current_count=len(page.aliases))
    found = [_alias(call, each) for each in page.aliases]
    return pb.ListAliasesResponse(body=[pb.ListAliasesResponse.Page(aliases=found, page_info=info)])


def _alias(call: Call, alias: Alias) -> pb.Alias:
    return pb.Alias(
        domain_id=alias.domain_id,
        key_id=alias.key_id,
        alias=aliases.PREFIX + alias.alias,
        alias_urn=aliases.urn(call, alias),
        create_time=timestamp(alias.created),
        update_time=timestamp(alias.updated),
    )

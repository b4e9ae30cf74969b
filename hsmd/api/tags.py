"""Servicer of tags.proto."""

from collections.abc import Iterable

from google.protobuf.empty_pb2 import Empty

from hsmd.api.keys import key_details
from hsmd.domain import tags
from hsmd.domain.core import Call
from hsmd.domain.keys import check_sequence
from hsmd.pb.v1 import tags_pb2 as pb
from hsmd.store.tags import Tag

SERVICE = pb.DESCRIPTOR.services_by_name["Tags"]


def create_tag(call: Call, request: pb.CreateTagRequest) -> Empty:
    """DEW: create-kms-tag."""
    check_sequence(request.sequence)
    tags.put(call, request.key_id, _pairs([request.tag]))
    return Empty()


def delete_tag(call: Call, request: pb.DeleteTagRequest) -> Empty:
    """DEW: delete-tag."""
    tags.remove(call, request.key_id, [(request.key, "")])
    return Empty()


def batch_tags(call: Call, request: pb.BatchTagsRequest) -> Empty:
    """DEW: batch-create-kms-tags."""
    check_sequence(request.sequence)
    change = tags.put if request.action == pb.TAG_ACTION_CREATE else tags.remove
    change(call, request.key_id, _pairs(request.tags))
    return Empty()


def show_tags(call: Call, request: pb.ShowTagsRequest) -> pb.ShowTagsResponse:
    """DEW: show-kms-tags."""
    found = tags.show(call, request.key_id)
    return pb.ShowTagsResponse(tags=_tags(found), exist_tags_num=len(found))


def list_tags(call: Call, request: pb.ListTagsRequest) -> pb.ListTagsResponse:
    """DEW: list-kms-tags."""
    found = tags.list_tags(call).items()
    return pb.ListTagsResponse(tags=[pb.TagValues(key=name, values=values) for name, values in found])


def list_keys_by_tags(call: Call, request: pb.ListKeysByTagsRequest) -> pb.ListKeysByTagsResponse:
    """DEW: list-kms-by-tags."""
    check_sequence(request.sequence)
    filters = [(each.key, list(each.values)) for each in request.tags]
    resource, matches = request.resource_instances, _pairs(request.matches)
    limit = request.limit if request.HasField("limit") else None
    offset = request.offset if request.HasField("offset") else None
    if request.action == pb.TAG_QUERY_COUNT:
        total = tags.count(call, resource, filters, matches, offset=offset)
        return pb.ListKeysByTagsResponse(total_count=total)
    found, total = tags.find(call, resource, filters, matches, limit=limit, offset=offset)
    return pb.ListKeysByTagsResponse(resources=[_resource(call, each) for each in found], total_count=total)


def _pairs(items: Iterable[pb.Tag]) -> list[tags.Pair]:
    return [(each.key, each.value) for each in items]


def _tags(found: Iterable[Tag]) -> list[pb.Tag]:
    return [pb.Tag(key=each.name, value=each.value) for each in found]


def _resource(call: Call, found: tags.Tagged) -> pb.ListKeysByTagsResponse.Resource:
    return pb.ListKeysByTagsResponse.Resource(
        resource_id=found.key.id,
        resource_detail=key_details(call, found.key),
        resource_name=found.key.alias,
        tags=_tags(found.tags),
    )

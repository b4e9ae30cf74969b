"""One route: from the parts of an HTTP request to a gRPC message, and from the answer to JSON."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import unquote_to_bytes

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from hsmd.descriptors import (
    DescriptionError,
    field_options,
    form_of,
    http_rules,
    json_name,
    method_options,
    service_options,
)
from hsmd.errors import BODY_NOT_JSON, FORMAT_INVALID, TOKEN_REQUEST_INVALID, Error
from hsmd.gateway.bodies import NotJsonError, parse
from hsmd.gateway.readers import Readers, UnreadableError
from hsmd.gateway.routes import Tree
from hsmd.gateway.writers import Writers
from hsmd.pb.options.v1 import options_pb2

Headers = Mapping[bytes, bytes]
Pairs = list[tuple[bytes, bytes]]

JSON_HEADERS: Pairs = [
    (b"content-type", b"application/json"),
    (b"cache-control", b"no-store"),  # answers hold keys and plaintexts
    (b"x-content-type-options", b"nosniff"),
]

_MOST_PARAMETERS = 100  # in a query
_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response; `code` is the error code, `own` tells a refusal that the daemon hasn't seen."""

    status: int
    body: bytes
    headers: Pairs
    code: str = ""
    own: bool = False


def query_pairs(query: bytes) -> Pairs:
    """The decoded parameters of a query string in their order; `+` is a space. Raises Error."""
    if not query:
        return []
    parts = [part.partition(b"=") for part in query.replace(b"+", b" ").split(b"&") if part]
    if len(parts) > _MOST_PARAMETERS:
        raise Error(FORMAT_INVALID, reason=f"the query has more than {_MOST_PARAMETERS} parameters")
    return [(unquote_to_bytes(name), unquote_to_bytes(value)) for name, _, value in parts]


class Route:
    """A method behind one verb and path. Everything a request needs is looked up when this is built."""

    def __init__(
        self,
        method: MethodDescriptor,
        verb: str,
        template: str,
        rule: Any,
        readers: Readers,
        writers: Writers,
    ) -> None:
        options = method_options(method)
        request, response = method.input_type, method.output_type
        if method.client_streaming or method.server_streaming:
            raise DescriptionError(f"{method.full_name}: a stream has no REST face")
        self.method = method
        self.verb = verb
        self.template = template
        self.call = f"/{method.containing_service.full_name}/{method.name}"
        self.errors = service_options(method.containing_service).errors
        self.open = options.access == options_pb2.OPEN
        self.welcome = options.access == options_pb2.WELCOME
        self.repeatable = options.repeatable
        self.body = rule.body
        self.response_body = rule.response_body
        self._read = readers.message(request)
        names = {field.name: json_name(field) for field in request.fields}
        self._variables = _named(_variables(template), names, method)
        self._body_name = _named([rule.body], names, method)[rule.body] if rule.body not in ("", "*") else ""
        self._lists = {json_name(field).encode() for field in request.fields if field.is_repeated}
        self._headers = [
            (json_name(field), field_options(field).header.lower().encode("ascii"))
            for field in request.fields
            if field_options(field).header
        ]
        self._response_class = GetMessageClass(response)
        self.status = 204 if response.full_name == "google.protobuf.Empty" else options.status or 200
        self._write = writers.message(response)
        self._part = _part(rule, response.fields_by_name, writers)
        self._response_headers = [
            (field.name, field_options(field).header.encode("ascii"))
            for field in response.fields
            if field_options(field).header
        ]

    def __repr__(self) -> str:
        return f"Route({self.verb} {self.template} {self.call})"

    def request(self, variables: Mapping[str, str], query: Pairs, headers: Headers, body: bytes) -> bytes:
        """The serialised request message. Raises Error with the field's fault or that of the body."""
        try:
            tree = self._tree(query, body)
            for name, header in self._headers:
                tree.pop(name, None)
                if header in headers:
                    tree[name] = headers[header].decode("latin-1")
            for variable, value in variables.items():  # the path wins over the body
                tree[self._variables[variable]] = value
            return self._read(tree).SerializeToString()
        except NotJsonError as error:
            raise self._refused(Error(BODY_NOT_JSON, reason=error), str(error)) from error
        except UnreadableError as error:
            raise self._refused(error.error(), f"{error.path}: {error.reason()}") from error

    def response(self, data: bytes) -> Answer:
        """The HTTP answer to a serialised response message."""
        if self.status == 204:
            return Answer(204, b"", [])
        message = self._response_class.FromString(data)
        tree = self._part(message) if self._part else self._write(message)
        headers = [
            (name, getattr(message, attribute).encode("ascii")) for attribute, name in self._response_headers
        ]
        return Answer(self.status, _encode(tree).encode("ascii"), JSON_HEADERS + headers)

    def _tree(self, query: Pairs, body: bytes) -> dict[str, Any]:
        if self.body == "*":
            tree = parse(body)
            if tree is None:
                return {}
            if type(tree) is not dict:
                raise NotJsonError("an object is due")
            return tree
        tree = self._parameters(query) if query else {}
        if self._body_name:
            tree[self._body_name] = parse(body)
        return tree

    def _parameters(self, query: Pairs) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for name, value in query:
            key = name.decode("utf-8", "replace")
            text = value.decode("utf-8", "surrogateescape")  # what is not UTF-8 is refused as text is
            if name in self._lists:
                tree.setdefault(key, []).append(text)
            elif key in tree:
                tree[key] = [tree[key]]  # a list is not what is due here
            else:
                tree[key] = text
        return tree

    def _refused(self, error: Error, reason: str) -> Error:
        if self.errors == options_pb2.IAM:
            return Error(TOKEN_REQUEST_INVALID, reason=reason)
        return error


def _variables(template: str) -> list[str]:
    return [segment[1:-1] for segment in template.split("/") if segment.startswith("{")]


def _named(attributes: Iterable[str], names: Mapping[str, str], method: MethodDescriptor) -> dict[str, str]:
    for attribute in attributes:
        if attribute not in names:
            raise DescriptionError(f"{method.full_name}: its request has no field {attribute}")
    return {attribute: names[attribute] for attribute in attributes}


def _part(rule: Any, fields: Mapping[str, FieldDescriptor], writers: Writers) -> Any:
    if not rule.response_body:
        return None
    field = fields.get(rule.response_body)
    if field is None:
        raise DescriptionError(f"the answer has no field {rule.response_body}")
    write = writers.field(field, form_of(field_options(field)))
    return lambda message: write(getattr(message, field.name))


def build(services: Iterable[ServiceDescriptor]) -> tuple[Tree[Route], list[Route]]:
    """The tree of all routes that the services declare, and the routes in order. Raises DescriptionError."""
    readers, writers = Readers(), Writers()
    tree: Tree[Route] = Tree()
    routes = []
    for service in services:
        for method in cast("Iterable[MethodDescriptor]", service.methods):
            for verb, template, rule in http_rules(method):
                route = Route(method, verb, template, rule, readers, writers)
                tree.add(verb, template, route)
                routes.append(route)
    return tree, routes

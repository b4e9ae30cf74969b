"""The OpenAPI 3.1 document of the REST face, from the same routes that serve it."""

import re
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from hsmd import errors
from hsmd.descriptors import (
    enum_name,
    enum_type,
    field_options,
    form_of,
    holds_message,
    is_map,
    json_name,
    message_type,
)
from hsmd.gateway.probes import ALIVE, READY
from hsmd.gateway.readers import INTEGERS
from hsmd.gateway.transcoder import Route
from hsmd.pb.options.v1 import options_pb2 as forms

Schema = dict[str, Any]

_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SCHEMES: Schema = {
    "token": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Auth-Token",
        "description": "A token from POST /v3/auth/tokens, valid for 24 hours.",
    },
    "signature": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "An AK/SK request signature: SDK-HMAC-SHA256 Access=..., SignedHeaders=..., "
        "Signature=..., with X-Sdk-Date beside it. The cloud SDKs make it.",
    },
}
_REQUEST_ID: Schema = {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}}
_TEXT: Schema = {"type": "string"}
_ERRORS: dict[int, tuple[str, Schema]] = {
    forms.KMS: (
        "KmsError",
        {"error": {"type": "object", "properties": {"error_code": _TEXT, "error_msg": _TEXT}}},
    ),
    forms.FLAT: ("FlatError", {"error_code": _TEXT, "error_msg": _TEXT}),
    forms.IAM: (
        "IamError",
        {
            "error": {
                "type": "object",
                "properties": {"code": {"type": "integer"}, "message": _TEXT, "title": _TEXT},
            }
        },
    ),
}
_PROBES = {ALIVE.decode(): "Does the gateway answer", READY.decode(): "Do gateway, daemon and HSM serve"}
_GATE: Schema = {"error_code": _TEXT, "error_msg": _TEXT, "request_id": _TEXT}


def _literal_form(pattern: str) -> Callable[[FieldDescriptor], Schema]:
    return lambda _: {"type": "string", "pattern": pattern}


# How a value looks, by its declared form; PLAIN goes by the field's type.
_FORMS: dict[int, Callable[[FieldDescriptor], Schema]] = {
    forms.HEX: _literal_form("^([0-9a-fA-F]{2})*$"),
    forms.BASE64: lambda _: {"type": "string", "contentEncoding": "base64"},
    forms.TEXT: lambda _: {"type": "string"},
    forms.WORD: lambda _: {"type": ["string", "integer"]},
    forms.JSON: lambda _: {"description": "Any JSON."},
    forms.INT_STRING: _literal_form("^-?[0-9]+$"),
    forms.BOOL_STRING: lambda _: {"type": "string", "enum": ["true", "false"]},
    forms.FLAG_STRING: lambda _: {"type": "string", "enum": ["1", "0"]},
    forms.MILLIS_STRING: lambda _: {
        "type": "string",
        "pattern": "^[0-9]*$",
        "description": "Milliseconds since 1970.",
    },
    forms.MILLIS: lambda _: {"type": ["integer", "null"], "description": "Milliseconds since 1970."},
    forms.ISO_TIME: lambda _: {"type": "string", "format": "date-time"},
    forms.ENUM_NUMBER: lambda field: {
        "type": "string",
        "enum": [str(value.number) for value in enum_type(field).values],
        "description": ", ".join(f"{value.number}: {value.name}" for value in enum_type(field).values),
    },
    forms.ENUM_INTEGER: lambda field: {
        "type": "integer",
        "enum": [value.number for value in enum_type(field).values],
        "description": ", ".join(f"{value.number}: {value.name}" for value in enum_type(field).values),
    },
}


def document(routes: Iterable[Route]) -> Schema:
    """The whole document, ready for json.dumps."""
    schemas: Schema = {
        name: {"type": "object", "properties": properties, "required": list(properties)}
        for name, properties in (("GateError", _GATE), *_ERRORS.values())
    }
    paths: dict[str, Schema] = {}
    seen: dict[str, int] = {}
    for route in routes:
        name = route.method.name
        seen[name] = seen.get(name, 0) + 1
        operation_id = name if seen[name] == 1 else f"{name}{seen[name]}"
        paths.setdefault(route.template, {})[route.verb.lower()] = _operation(route, operation_id, schemas)
    paths.update({path: {"get": _probe(path, summary)} for path, summary in _PROBES.items()})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "hsmd",
            "version": version("hsmd"),
            "description": "Keys that live in an HSM, by the DEW REST API.",
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": _SCHEMES,
            "headers": {
                "RequestId": {
                    "description": "Names the request in logs and audit records.",
                    "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
                }
            },
        },
    }


def _probe(path: str, summary: str) -> Schema:
    schema = {"type": "object", "properties": {"status": _TEXT}, "required": ["status"]}
    content = {"application/json": {"schema": schema}}
    responses = {"200": {"description": "Yes.", "headers": _REQUEST_ID, "content": content}}
    if path == READY.decode():
        responses["503"] = {"description": "No.", "headers": _REQUEST_ID, "content": content}
    return {
        "operationId": path.strip("/"),
        "summary": summary,
        "tags": ["Probes"],
        "security": [],
        "responses": responses,
    }


def _operation(route: Route, operation_id: str, schemas: Schema) -> Schema:
    request = route.method.input_type
    variables = {segment[1:-1] for segment in route.template.split("/") if segment.startswith("{")}
    in_body = {field.name for field in request.fields} if route.body == "*" else {route.body}
    parameters = [
        parameter
        for field in request.fields
        if (parameter := _parameter(field, variables, in_body, schemas)) is not None
    ]
    operation: Schema = {
        "operationId": operation_id,
        "summary": _WORDS.sub(" ", route.method.name).capitalize(),
        "tags": [route.method.containing_service.name],
        "security": [] if route.open else [{"signature": []}, {"token": []}],
        "responses": _responses(route, schemas),
    }
    if parameters:
        operation["parameters"] = parameters
    if route.body:
        operation["requestBody"] = _request_body(route, variables, schemas)
    return operation


def _parameter(
    field: FieldDescriptor, variables: set[str], in_body: set[str], schemas: Schema
) -> Schema | None:
    options = field_options(field)
    name, place = json_name(field), "query"
    if field.name in variables:
        name, place = field.name, "path"
    elif options.header:
        name, place = options.header, "header"
    elif field.name in in_body:
        return None
    return {
        "name": name,
        "in": place,
        "required": place == "path" or options.required,
        "schema": _field(field, form_of(options), schemas),
    }


def _request_body(route: Route, variables: set[str], schemas: Schema) -> Schema:
    request = route.method.input_type
    if route.body == "*":
        schema = _message(request, schemas, left_out=variables)
        required = bool(schema.get("required"))
    else:
        field = request.fields_by_name[route.body]
        schema, required = (
            _field(field, form_of(field_options(field)), schemas),
            field_options(field).required,
        )
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def _responses(route: Route, schemas: Schema) -> Schema:
    response = route.method.output_type
    headers = dict(_REQUEST_ID)
    for field in response.fields:
        if field_options(field).header:
            headers[field_options(field).header] = {"schema": {"type": "string"}}
    success: Schema = {"description": "Success.", "headers": headers}
    if response.full_name != "google.protobuf.Empty":
        schema = _reference(response, schemas)
        if route.response_body:
            field = response.fields_by_name[route.response_body]
            schema = _field(field, form_of(field_options(field)), schemas)
        success["content"] = {"application/json": {"schema": schema}}
    shape = _ERRORS[route.errors][0]
    found: Schema = {str(route.status): success}
    for status, text, name in (
        ("400", "The request is not valid, or the key's state refuses it.", shape),
        ("401", "The identity could not be established.", "GateError" if not route.open else shape),
        ("403", "The caller lacks the permission.", shape),
        ("404", "There is no such thing.", shape),
        ("413", "The request is too large.", "GateError"),
        ("429", "Too many requests.", "GateError"),
        ("500", "Internal error.", shape),
        ("503", "Not available now.", shape),
    ):
        found[status] = _failure(text, name, codes=[] if name != "KmsError" else _codes(int(status)))
    return found


def _codes(status: int) -> list[str]:
    return sorted(
        code for code, fault in errors.BY_CODE.items() if fault.http == status and code.startswith("KMS.")
    )


def _failure(text: str, schema: str, codes: list[str]) -> Schema:
    known = f" Codes: {', '.join(codes)}." if codes else ""
    return {
        "description": text + known,
        "headers": _REQUEST_ID,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }


def _reference(descriptor: Descriptor, schemas: Schema) -> Schema:
    name = descriptor.full_name.removeprefix(f"{descriptor.file.package}.")
    if name not in schemas:
        schemas[name] = {}  # before its fields: types may hold themselves
        schemas[name] = _message(descriptor, schemas, left_out=set())
    return {"$ref": f"#/components/schemas/{name}"}


def _message(descriptor: Descriptor, schemas: Schema, left_out: set[str]) -> Schema:
    properties: Schema = {}
    required = []
    for field in descriptor.fields:
        options = field_options(field)
        if options.header or options.refused or field.name in left_out:
            continue
        properties[json_name(field)] = _field(field, form_of(options), schemas)
        if options.HasField("also"):
            properties[options.also.name] = _field(field, form_of(options.also), schemas)
        if options.required:
            required.append(json_name(field))
    schema: Schema = {"type": "object", "properties": properties}
    return {**schema, "required": required} if required else schema


def _field(field: FieldDescriptor, form: int, schemas: Schema) -> Schema:
    options = field_options(field)
    if is_map(field):
        value = message_type(field).fields_by_name["value"]
        return {"type": "object", "additionalProperties": _value(value, forms.PLAIN, schemas)}
    schema = _value(field, form, schemas)
    if field.is_repeated:
        schema = {"type": "array", "items": schema}
        return {**schema, "maxItems": options.max} if options.max else schema
    if options.max and field.type == FieldDescriptor.TYPE_STRING:
        schema["maxLength"] = options.max
    return schema


def _value(field: FieldDescriptor, form: int, schemas: Schema) -> Schema:
    if form in _FORMS:
        return _FORMS[form](field)
    if holds_message(field):
        return _reference(message_type(field), schemas)
    if field.type in INTEGERS:
        low, high = INTEGERS[field.type]
        return {"type": "integer", "minimum": low, "maximum": high}
    if field.type == FieldDescriptor.TYPE_ENUM:
        return {"type": "string", "enum": _enum_names(enum_type(field))}
    return {"type": "boolean" if field.type == FieldDescriptor.TYPE_BOOL else "string"}


def _enum_names(enum: EnumDescriptor) -> list[str]:
    return [enum_name(value) for value in enum.values]

"""What the proto declares of each method, compiled once at start: options, routes, checks."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import quote

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from hsmd.api.facts import Tell, facts_of
from hsmd.descriptors import field_options, http_rules, method_options
from hsmd.domain.core import in_domain, in_either
from hsmd.errors import BY_CODE, PARAMETER_INVALID, PARAMETER_MISSING, Error
from hsmd.pb.options.v1 import options_pb2

Check = Callable[[Any], None]
Route = tuple[tuple[str, str], ...]
"""What a signed request begins with: fixed text, and the field whose value follows it, "" at the end."""

_ACTION = re.compile(r"[a-z]+(:[A-Za-z]+){2}")
_KEY_ID = "key_id"  # how request fields that name a key end
_VARIABLE = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True)  # without slots: what follows from the fields is worked out once
class Method:
    """One rpc: `routes` holds what a signature may name.

    `keyed`: it is about keys, and what policies say may wait for them. `facts` tells what conditions of
    policies may be on, of a request.
    """

    name: str
    action: str
    event: str
    resource: str
    grant: str
    access: int
    keyed: bool
    request: type[Message]
    facts: Tell
    check: Check
    routes: tuple[Route, ...]
    ukey_roles: frozenset[str] = frozenset()
    while_sealed: bool = False

    @cached_property
    def service(self) -> str:
        """The full name of its service, like "hsmd.v1.Ukeys"."""
        return self.name.partition("/")[0]

    @cached_property
    def open(self) -> bool:
        """Whether anybody may call it."""
        return self.access in (options_pb2.OPEN, options_pb2.WELCOME)

    @cached_property
    def in_domain(self) -> bool:
        """Whether it is one of the caller's domain, wherever else the caller may act."""
        return in_domain(self.action)

    @cached_property
    def in_either(self) -> bool:
        """Whether it is one of a project or, where that is named instead, of the caller's domain."""
        return in_either(self.action)

    @cached_property
    def for_peers(self) -> bool:
        """Whether peer regions call it, and nobody else."""
        return self.access == options_pb2.PEER

    @cached_property
    def for_gateways(self) -> bool:
        """Whether gateways call it on their own behalf, and nobody else."""
        return self.access == options_pb2.GATEWAY

    @cached_property
    def for_ukeys(self) -> bool:
        """Whether UKeys call it, of the roles in `ukey_roles` where it names some, and nobody else."""
        return self.access == options_pb2.ADMIN

    @cached_property
    def deferred(self) -> bool:
        """Whether something else may allow what the caller's roles don't: a grant, or being a party."""
        return bool(self.grant) or self.access == options_pb2.PARTY


def methods_of(service: ServiceDescriptor) -> Iterator[tuple[MethodDescriptor, Method]]:
    """The service's methods. Raises ValueError for one without event, or without a needed action."""
    for descriptor in service.methods:
        options = method_options(descriptor)
        name = f"{service.full_name}/{descriptor.name}"
        if not options.event:
            raise ValueError(f"{name}: the option event is missing")
        if (options.access in (options_pb2.PERMITTED, options_pb2.PARTY)) != bool(options.action):
            raise ValueError(f"{name}: a permitted method needs an action, any other must have none")
        if options.ukey_roles and options.access != options_pb2.ADMIN:
            raise ValueError(f"{name}: roles of UKeys count with access ADMIN only")
        if options.action and not _ACTION.fullmatch(options.action):
            raise ValueError(f"{name}: the action is not of the form service:type:operation")
        yield (
            descriptor,
            Method(
                name=name,
                action=options.action,
                event=options.event,
                resource=options.resource,
                grant=options.grant,
                access=options.access,
                keyed=options.each or options.resource.endswith(_KEY_ID),
                request=message_factory.GetMessageClass(descriptor.input_type),
                facts=facts_of(descriptor.input_type),
                check=checker(descriptor.input_type),
                routes=tuple(tuple(_route(verb, path)) for verb, path, _ in http_rules(descriptor)),
                ukey_roles=frozenset(options.ukey_roles),
                while_sealed=options.while_sealed,
            ),
        )


def signed_beginning(route: Route, request: Any) -> str | None:
    """Verb and path as a caller signs them for this request: segments percent-encoded, a slash at the end.

    A slash within a variable stands there like any other. None where two variables have one: such a path
    could be read in more than one way.
    """
    beginning, slashed = "", 0
    for fixed, variable in route:
        beginning += fixed
        if variable and (text := str(getattr(request, variable))):
            if not (text.isascii() and text.isalnum()):  # ids, which there are most of, need none of it
                slashed += "/" in text
                text = _quoted(text)
            beginning += f"{text}/"
    return beginning if slashed <= 1 else None


def _route(verb: str, template: str) -> Iterator[tuple[str, str]]:
    fixed = f"{verb}\n/"
    for segment in filter(None, template.split("/")):
        if variable := _VARIABLE.fullmatch(segment):
            yield fixed, variable[1]
            fixed = ""
        else:
            fixed += f"{_quoted(segment)}/"
    yield f"{fixed}\n", ""


def _quoted(text: str) -> str:
    return quote(text, safe="/~")


def checker(descriptor: Descriptor) -> Check:
    """A function that raises the fault of the first field which is missing or not within its bounds."""
    checks = [each for field in descriptor.fields for each in _field_checks(field)]

    def check(message: Message) -> None:
        for each in checks:
            each(message)

    return check


def _field_checks(field: FieldDescriptor) -> Iterator[Check]:
    options = field_options(field)
    name = options.name or field.name
    yield from _bounds(field)
    if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
        yield _text(field.name, name, options.fault)
    if field.enum_type is not None and not field.is_repeated:
        yield _known(field.name, name, frozenset(field.enum_type.values_by_number), options.fault)
    if field.message_type is not None and not field.message_type.GetOptions().map_entry:
        yield (_inside_each if field.is_repeated else _inside)(field.name, field.message_type)


def _bounds(field: FieldDescriptor) -> Iterator[Check]:
    options = field_options(field)
    name = options.name or field.name
    if options.refused:
        yield _absence(field, name, options.refused)
    if options.required:
        yield _presence(field, name)
    if options.max:
        yield _bound(field.name, name, options.max, options.fault)


def _inside(attribute: str, inner: Descriptor) -> Check:
    check_inner = checker(inner)

    def check(message: Any) -> None:
        if message.HasField(attribute):
            check_inner(getattr(message, attribute))

    return check


def _inside_each(attribute: str, inner: Descriptor) -> Check:
    """Presence and bounds of each item. Its texts are for the domain: what they mean depends on the list."""
    checks = [each for field in inner.fields for each in _bounds(field)]

    def check(message: Any) -> None:
        for item in getattr(message, attribute):
            for each in checks:
                each(item)

    return check


def _presence(field: FieldDescriptor, name: str) -> Check:
    tracked = field.has_presence
    attribute = field.name

    def check(message: Any) -> None:
        if not (message.HasField(attribute) if tracked else getattr(message, attribute)):
            raise Error(PARAMETER_MISSING, name=name)

    return check


def _absence(field: FieldDescriptor, name: str, reason: str) -> Check:
    tracked = field.has_presence
    attribute = field.name

    def check(message: Any) -> None:
        if message.HasField(attribute) if tracked else getattr(message, attribute):
            raise Error(PARAMETER_INVALID, name=name, reason=f"{reason}; leave it out")

    return check


def _text(attribute: str, name: str, code: str) -> Check:
    """Not every store keeps a NUL in its texts (PostgreSQL does not), and no name of ours has one."""
    fault = BY_CODE[code] if code else PARAMETER_INVALID

    def check(message: Any) -> None:
        if "\0" in getattr(message, attribute):
            raise Error(fault, name=name, reason="a NUL character may not stand there")

    return check


def _known(attribute: str, name: str, numbers: frozenset[int], code: str) -> Check:
    """Enums are open on the wire: a number that the API lacks arrives as it was sent."""
    fault = BY_CODE[code] if code else PARAMETER_INVALID

    def check(message: Any) -> None:
        if getattr(message, attribute) not in numbers:
            raise Error(fault, name=name, reason="the enum has no such value")

    return check


def _bound(attribute: str, name: str, most: int, code: str) -> Check:
    fault = BY_CODE[code] if code else PARAMETER_INVALID

    def check(message: Any) -> None:
        if len(getattr(message, attribute)) > most:
            raise Error(fault, name=name, reason=f"at most {most} are due")

    return check

"""Writes the tables of docs/permissions.md: from the proto, the built-in roles, the engine. No arguments."""

import sys
from pathlib import Path

from google.protobuf.descriptor import FieldDescriptor

from hsmd.api.methods import Method, methods_of
from hsmd.descriptors import all_services, field_options
from hsmd.domain import builtin, conditions, documents, facts
from hsmd.domain.permissions import Answer, Held, Permissions
from hsmd.pb.options.v1 import options_pb2

PAGE = Path(__file__).parents[1] / "docs" / "permissions.md"
BEGIN, END = "<!-- tables: begin (scripts/permissions.py) -->", "<!-- tables: end -->"

_ELSE: dict[int, str] = {
    options_pb2.OPEN: "anybody",
    options_pb2.WELCOME: "anybody",
    options_pb2.IDENTIFIED: "everybody who is known",
    options_pb2.GATEWAY: "gateways, for themselves",
}


def page(text: str) -> str:
    """The page with fresh tables between the marks."""
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n\n{tables()}\n{END}{rest.split(END)[1]}"


def tables() -> str:
    """Every table, as Markdown."""
    return "\n".join((_roles(), _methods(), _conditions()))


def _roles() -> str:
    lines = ["### Built-in roles", "", "| role | given on | actions |", "|---|---|---|"]
    places = {builtin.ON_DOMAINS: "the domain", builtin.ON_PROJECTS: "projects", builtin.ANYWHERE: "either"}
    for role in builtin.ROLES:
        actions = ", ".join(f"`{each}`" for each in role.actions)
        lines.append(f"| {role.display_name} | {places[role.type]} | {actions} |")
    return "\n".join((*lines, ""))


def _methods() -> str:
    lines = ["### Methods"]
    for service in all_services():
        lines += ["", f"**{service.name}**", "", "| method | action | roles | also |", "|---|---|---|---|"]
        for descriptor, method in methods_of(service):
            action = f"`{method.action}`" if method.action else ""
            lines.append(f"| {descriptor.name} | {action} | {_allowing(method.action)} | {_also(method)} |")
    return "\n".join((*lines, ""))


def _allowing(action: str) -> str:
    return ", ".join(
        role.display_name
        for role in builtin.ROLES
        if action and _permissions(role).rules(action).plain is Answer.ALLOWED
    )


def _permissions(role: builtin.Role) -> Permissions:
    held = Held(role.id, role.display_name, role.document, "user", role is builtin.OPERATOR)
    return Permissions([held])


def _also(method: Method) -> str:
    if method.grant:
        return f"a grant of `{method.grant}`"
    if method.for_ukeys:
        roles = " or ".join(sorted(method.ukey_roles)) or "any"
        return f"UKeys: {roles}"
    return _ELSE.get(method.access, "who is concerned" if method.deferred else "")


def _conditions() -> str:
    asked: dict[str, set[str]] = {}
    for service in all_services():
        for descriptor, _ in methods_of(service):
            for field in descriptor.input_type.fields:
                if name := field_options(field).condition:
                    asked.setdefault(name, set()).add(f"{descriptor.name}.{_shown(field)}")
    lines = ["### Condition keys of requests", "", "| key | fields |", "|---|---|"]
    lines += [f"| `{name}` | {', '.join(sorted(asked[name]))} |" for name in sorted(asked)]
    lines += ["", "Keys of every call, in any spelling of large and small letters: "]
    lines[-1] += ", ".join(f"`{name}`" for name in (*facts.NAMES, "g:resourcetag/NAME")) + "."
    lines += ["", "Operators: " + ", ".join(f"`{name}`" for name in conditions.OPERATORS) + "."]
    lines += [
        "",
        f"Bounds: {documents.MOST_CHARACTERS} characters a policy, {documents.MOST_STATEMENTS} statements,",
    ]
    lines[-1] += (
        f" {documents.MOST_VALUES} values in a list, {documents.MOST_CONDITIONS} conditions a statement."
    )
    return "\n".join((*lines, ""))


def _shown(field: FieldDescriptor) -> str:
    return field_options(field).name or field.name


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
    sys.stdout.write(f"{PAGE}\n")

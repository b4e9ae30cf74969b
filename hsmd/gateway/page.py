"""GET /openapi.json and GET /docs: the API's description for programs and, on one plain page, for people."""

import base64
import hashlib
import json
from html import escape
from typing import Any

from hsmd.gateway.transcoder import Answer

Schema = dict[str, Any]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 small { font-weight: normal; font-size: 1rem; opacity: .7; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0; }
summary { cursor: pointer; padding: .5rem .75rem; }
details > div { padding: 0 .75rem .75rem; overflow-x: auto; }
code { font: 14px/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
.verb { display: inline-block; min-width: 3.5rem; font-weight: bold; }
table { border-collapse: collapse; width: 100%; }
td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; }
td { border-bottom: 1px solid var(--soft); }
"""


def pages(document: Schema) -> dict[bytes, Answer]:
    """The gateway's own pages by raw path."""
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; " + (
        "frame-ancestors 'none'"
    )
    common = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
    return {
        b"/openapi.json": Answer(
            200,
            json.dumps(document, indent=1).encode("ascii"),
            [(b"content-type", b"application/json"), *common],
        ),
        b"/docs": Answer(
            200,
            _html(document).encode("utf-8"),
            [
                (b"content-type", b"text/html; charset=utf-8"),
                (b"content-security-policy", policy.encode("ascii")),
                *common,
            ],
        ),
    }


def _html(document: Schema) -> str:
    groups: dict[str, list[str]] = {}
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            groups.setdefault(operation["tags"][0], []).append(_operation(verb, path, operation, document))
    sections = "".join(f"<h2>{escape(name)}</h2>{''.join(parts)}" for name, parts in groups.items())
    info = document["info"]
    schemes = "".join(
        _row(escape(scheme["name"]), escape(scheme["description"]))
        for scheme in document["components"]["securitySchemes"].values()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>hsmd API</title>'
        f"<style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>"
        f"<p>{escape(info['description'])} "
        'The same for programs: <a href="openapi.json">openapi.json</a>.</p>'
        f"<h2>Who calls</h2><p>One of these headers, unless a call says it is open.</p>{_table(schemes)}"
        f"{sections}</body></html>\n"
    )


def _operation(verb: str, path: str, operation: Schema, document: Schema) -> str:
    parts = []
    if not operation["security"]:
        parts.append("<p>Open to anybody.</p>")
    given = "".join(
        _row(
            f"<code>{escape(each['name'])}</code>",
            f"in the {each['in']}",
            _kind(each["schema"]),
            _due(each["required"]),
        )
        for each in operation.get("parameters", ())
    )
    if given:
        parts.append(f"<h3>Parameters</h3>{_table(given)}")
    if "requestBody" in operation:
        parts.append(f"<h3>Body</h3>{_content(operation['requestBody'], document)}")
    for status, response in operation["responses"].items():
        good = status < "400"
        parts.append(f"<h3>{status}</h3>" if good else "")
        parts.append(_content(response, document) if good else "")
    failures = "".join(
        _row(status, escape(response["description"]))
        for status, response in operation["responses"].items()
        if status >= "400"
    )
    parts.append(f"<h3>Errors</h3>{_table(failures)}")
    return (
        f'<details><summary><span class="verb">{verb.upper()}</span> <code>{escape(path)}</code> '
        f"{escape(operation['summary'])}</summary><div>{''.join(parts)}</div></details>"
    )


def _content(holder: Schema, document: Schema) -> str:
    if "content" not in holder:
        return "<p>No body.</p>"
    rows = _rows(holder["content"]["application/json"]["schema"], document, "", ())
    return _table(rows) if rows else "<p>An empty object.</p>"


def _rows(schema: Schema, document: Schema, prefix: str, above: tuple[str, ...]) -> str:
    reference = schema.get("$ref", "")
    if reference in above:
        return ""
    if reference:
        schema = document["components"]["schemas"][reference.rpartition("/")[2]]
        above = (*above, reference)
    if schema.get("type") == "array":
        return _rows(schema["items"], document, f"{prefix}[]", above)
    found = []
    for name, each in schema.get("properties", {}).items():
        path = f"{prefix}.{name}" if prefix else name
        required = _due(name in schema.get("required", ()))
        found.append(_row(f"<code>{escape(path)}</code>", _kind(each), required))
        found.append(_rows(each, document, path, above))
    return "".join(found)


def _kind(schema: Schema) -> str:
    kind = schema.get("type", "object")
    text = kind if isinstance(kind, str) else " or ".join(kind)
    if "enum" in schema:
        text += ": " + ", ".join(str(each) or '""' for each in schema["enum"])
    elif "contentEncoding" in schema:
        text += f", {schema['contentEncoding']}"
    elif "pattern" in schema:
        text += f" matching {schema['pattern']}"
    if "maxLength" in schema:
        text += f", at most {schema['maxLength']} characters"
    return escape(f"{text}. {schema['description']}" if "description" in schema else text)


def _due(required: bool) -> str:
    return "required" if required else ""


def _row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _table(rows: str) -> str:
    return f"<table>{rows}</table>"

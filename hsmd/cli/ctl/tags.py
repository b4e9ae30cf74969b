"""hsmctl tag: add, remove, list."""

from __future__ import annotations

import click

from hsmd.cli.ctl import output
from hsmd.cli.ctl.context import Context, Group, example, pass_context


@click.group("tag", cls=Group)
def tags() -> None:
    """Tags on keys: up to ten of them, each a key of its own with a value.

    KEY is a key id, alias/NAME or an alias URN.
    """


@tags.command("add", epilog=example("hsmctl tag add alias/books floor=3 owner="))
@click.argument("key")
@click.argument("pairs", metavar="NAME=VALUE...", nargs=-1, required=True)
@pass_context
def add(context: Context, key: str, pairs: tuple[str, ...]) -> None:
    """Put tags on KEY, all of them or none; a tag that is there gets the new value."""
    split = [each.partition("=") for each in pairs]
    if not all(mark for _, mark, _ in split):
        raise click.UsageError("A tag is NAME=VALUE; the value may be empty.")
    _change(context, key, "CREATE", {name: value for name, _, value in split})
    if not context.json:
        output.say(f"{', '.join(name for name, _, _ in split)} put on {key}.")


@tags.command("remove", epilog=example("hsmctl tag remove alias/books floor owner"))
@click.argument("key")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@pass_context
def remove(context: Context, key: str, names: tuple[str, ...]) -> None:
    """Take tags away from KEY, all of them or none."""
    _change(context, key, "DELETE", dict.fromkeys(names, ""))
    if not context.json:
        output.say(f"{', '.join(names)} removed from {key}.")


@tags.command("list", epilog=example("hsmctl tag list alias/books", "hsmctl tag list"))
@click.argument("key", default="")
@pass_context
def list_(context: Context, key: str) -> None:
    """The tags of KEY, or every tag of the project with its values."""
    with context.client() as client:
        from hsmd.pb.v1 import tags_pb2 as pb

        if key:
            response = client.tags.ShowTags(pb.ShowTagsRequest(key_id=key))
        else:
            response = client.tags.ListTags(pb.ListTagsRequest())
        found = [output.document(each) for each in response.tags]
    if context.json:
        output.print_json({"tags": found})
    else:
        rows = [
            (each["key"], value) for each in found for value in each.get("values", [each.get("value", "")])
        ]
        output.print_table(("Name", "Value"), rows)


def _change(context: Context, key: str, action: str, values: dict[str, str]) -> None:
    with context.client() as client:
        from hsmd.pb.v1 import tags_pb2 as pb

        request = pb.BatchTagsRequest(key_id=key, action=f"TAG_ACTION_{action}")
        request.tags.extend(pb.Tag(key=name, value=value) for name, value in values.items())
        client.tags.BatchTags(request)
    if context.json:
        output.print_json({"tags": [{"key": name, "value": value} for name, value in values.items()]})

"""What the quickstart prints at its end: the endpoints, and how to call them from a shell and from Python."""

import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

from hsmd.daemon.development import Development

_SHELL = """\
source {env}

# hsmctl: keys and data at the command line
{bin}/hsmctl status
{bin}/hsmctl key list
{bin}/hsmctl file encrypt --key alias/demo FILE

# gRPC; reflection is on, so that clients need no files of ours
grpcurl -cacert "$HSMD_CA" -cert "$HSMD_CERT" -key "$HSMD_KEY" "$HSMD_GRPC" list
grpcurl -cacert "$HSMD_CA" -cert "$HSMD_CERT" -key "$HSMD_KEY" \\
  -d '{{"key_id": "alias/demo", "plain_text": "aGVsbG8="}}' "$HSMD_GRPC" hsmd.v1.Crypto/EncryptData

# REST; requests are signed by the access key; its description is open, $HSMD_REST/docs is for a browser
curl --cacert "$HSMD_CA" "$HSMD_REST/openapi.json"
"""

_SDK = """\
import os

from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkcore.http.http_config import HttpConfig
from huaweicloudsdkcore.region.region import Region
from huaweicloudsdkkms.v2 import EncryptDataRequest, EncryptDataRequestBody, KmsClient

http = HttpConfig.get_default_config()
http.ssl_ca_cert = os.environ["HSMD_CA"]
credentials = BasicCredentials(
    os.environ["HUAWEICLOUD_SDK_AK"], os.environ["HUAWEICLOUD_SDK_SK"]
).with_iam_endpoint(os.environ["HSMD_REST"])  # finds the project by the region's name
client = (
    KmsClient.new_builder()
    .with_http_config(http)
    .with_credentials(credentials)
    .with_region(Region(os.environ["HSMD_REGION"], os.environ["HSMD_REST"]))
    .build()
)
body = EncryptDataRequestBody(key_id="alias/demo", plain_text="hello")
print(client.encrypt_data(EncryptDataRequest(body=body)).cipher_text)
"""


def show(development: Development, console: Console, *, serving: bool) -> None:
    """Print it; commands stay unbroken, so that they can be copied."""
    folder = shlex.quote(str(Path(sys.executable).parent))
    env = shlex.quote(str(development.env))
    _title(console, "Endpoints")
    _line(console, "gRPC", development.grpc, "mutual TLS")
    _line(console, "REST", development.rest, "HTTPS; requests signed by AK/SK, or X-Auth-Token")
    _line(console, "Ids", f"project {development.project_id}", f"region {development.region}")
    _line(console, "Settings", str(development.env), "addresses, certificates, access key: source it")
    _title(console, "From a shell")
    _code(console, _SHELL.format(env=env, bin=folder), "bash")
    _title(console, "From Python, with the unmodified cloud SDK (pip install huaweicloudsdkkms)")
    _code(console, _SDK, "python")
    if serving:
        console.print("[bold green]Serving.[/] Ctrl-C ends it; what it holds stays for the next time.")


def _title(console: Console, text: str) -> None:
    console.print(f"\n[bold cyan]{text}[/]", soft_wrap=True)


def _line(console: Console, name: str, value: str, note: str) -> None:
    console.print(Text.assemble(f"  {name:<10}", (f"{value:<42}", "bold"), (note, "dim")), soft_wrap=True)


def _code(console: Console, source: str, language: str) -> None:
    painted = Syntax(source, language, theme="ansi_dark", background_color="default").highlight(source)
    painted.rstrip()
    console.print(painted, soft_wrap=True)
    console.print()

"""Build hook: generates hsmd/pb/ from proto/, for wheels and for editable installs."""

import re
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from google.api import annotations_pb2
from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# protoc names Python modules after the proto path (hsmd/v1/keys.proto); ours live one room deeper.
_IMPORT = re.compile(r"^(from|import) hsmd\.", re.MULTILINE)


def generate(root: Path) -> None:
    """Replace root/hsmd/pb by what protoc makes of root/proto."""
    target = root / "hsmd" / "pb"
    google = Path(annotations_pb2.__file__).parent.parent.parent
    protos = sorted(str(path) for path in (root / "proto").rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [
            f"-I{root / 'proto'}",
            f"-I{google}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"--python_out={scratch}",
            f"--pyi_out={scratch}",
            f"--grpc_python_out={scratch}",
            *protos,
        ]
        if protoc.main(["protoc", *arguments]) != 0:
            raise RuntimeError("protoc refused the files in proto/; its message stands above")
        made = Path(scratch) / "hsmd"
        for path in [*made.rglob("*.py"), *made.rglob("*.pyi")]:
            path.write_text(_IMPORT.sub(r"\1 hsmd.pb.", path.read_text()))
        for folder in [made, *(path for path in made.rglob("*") if path.is_dir())]:
            (folder / "__init__.py").touch()
        (made / "__init__.py").write_text('"""Generated from proto/ at build; never edited."""\n')
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(made, target)


class ProtoBuildHook(BuildHookInterface[Any]):
    """Runs protoc before hatchling collects files."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        generate(Path(self.root))

"""Generates everything that is derived from the contracts; `make gen` runs it, `make check` fails when it changes a file.

Written: the Python code under sdk/python/antiphon (from an image without the validation options, because a second copy of
validate.proto in a user's process would be a descriptor-pool error) and the servers' full image, which holds the
validation rules and options. Nothing is fetched: buf and protoc come from Python packages.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import grpc_tools
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SDK = ROOT / "sdk/python"
PACKAGES = ("antiphon/v1", "antiphon/mesh", "antiphon/store", "antiphon/options")
IMAGE = ROOT / "orchestrator/antiphon_orchestrator/api/contracts.binpb"


def buf(*arguments: str) -> None:
    subprocess.run([str(Path(sys.executable).with_name("buf")), *arguments], cwd=ROOT, check=True)


def without_validation(image: bytes) -> bytes:
    """The same descriptor set with every buf.validate option, import and file removed."""
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(image).file:
        pool.Add(file)
    # Parsed with classes of a pool that knows the extensions; with the default ones they would be unknown bytes.
    files = message_factory.GetMessageClass(pool.FindMessageTypeByName("google.protobuf.FileDescriptorSet"))
    extensions = [pool.FindExtensionByName(f"buf.validate.{name}") for name in ("message", "oneof", "field")]

    def strip(message: Any) -> None:
        for descriptor, value in message.ListFields():
            if descriptor.message_type is None:
                continue
            if descriptor.name == "options":
                for extension in extensions:
                    if extension.containing_type is value.DESCRIPTOR:
                        value.ClearExtension(extension)
                if not value.ListFields():
                    message.ClearField("options")
            else:
                for item in value if descriptor.is_repeated else (value,):
                    strip(item)

    result = files.FromString(image)
    for file in result.file:
        strip(file)
        kept = [name for name in file.dependency if not name.startswith("buf/")]
        del file.dependency[:]
        file.dependency.extend(kept)
    kept_files = [file for file in result.file if not file.name.startswith("buf/")]
    del result.file[:]
    result.file.extend(kept_files)
    stripped: bytes = result.SerializeToString(deterministic=True)
    return stripped


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        stripped = Path(scratch) / "stripped.binpb"
        full = Path(scratch) / "full.binpb"
        buf("build", "--as-file-descriptor-set", "-o", str(full))
        stripped.write_bytes(without_validation(full.read_bytes()))
        image = descriptor_pb2.FileDescriptorSet.FromString(stripped.read_bytes())
        files = [file.name for file in image.file if file.name.startswith("antiphon/")]
        output = Path(scratch) / "out"
        output.mkdir()
        plugins = [f"--{name}_out={output}" for name in ("python", "grpc_python", "mypy", "mypy_grpc")]
        bin_folder = Path(sys.executable).parent
        code: int = protoc.main(
            ["protoc", f"--descriptor_set_in={stripped}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
             f"--plugin=protoc-gen-mypy={bin_folder / 'protoc-gen-mypy'}",
             f"--plugin=protoc-gen-mypy_grpc={bin_folder / 'protoc-gen-mypy_grpc'}", *plugins, *files]
        )
        if code:
            return code
        for package in PACKAGES:
            shutil.rmtree(SDK / package, ignore_errors=True)
        for made in sorted(output.rglob("*.py*")):
            target = SDK / made.relative_to(output)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made, target)
        # A package needs its marker; generators write none.
        for package in PACKAGES:
            for folder in [SDK / package, *(p for p in (SDK / package).rglob("*") if p.is_dir())]:
                (folder / "__init__.py").write_text('"""Generated from protos/; do not edit."""\n')
        IMAGE.parent.mkdir(parents=True, exist_ok=True)
        buf("build", "--as-file-descriptor-set", "--exclude-source-info", "-o", str(IMAGE))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

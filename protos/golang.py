"""The part of `generate.py` that writes Go: stubs from the same image, and the table of error reasons.

The plugins are pinned in sdk/go/tools/go.mod and built from there by the `go` on the path; without one, Go's files are
left as they are. Import paths are given here and not in the protos, which know no language.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

ROOT = Path(__file__).resolve().parent.parent
SDK = Path("sdk/go")
MODULE = "antiphon.dev/antiphon"
PACKAGES = {
    "antiphon/v1/": "v1;antiphonv1",
    "antiphon/options/v1/": "options/v1;optionsv1",
    "antiphon/conformance/v1/": "internal/conformancev1;conformancev1",
}
"""Folders of protos that the SDK needs, each with the package it becomes."""
REASONS = SDK / "reasons.go"
TOOLS = (
    "google.golang.org/protobuf/cmd/protoc-gen-go",
    "google.golang.org/grpc/cmd/protoc-gen-go-grpc",
    "honnef.co/go/tools/cmd/staticcheck",
)

_HEAD = """// Code generated from protos/antiphon/v1/error.proto by make gen. DO NOT EDIT.

package antiphon

import "google.golang.org/grpc/codes"

// The reasons of the registry, without their prefix: errors.Is(err, antiphon.RunNotFound).
const (
"""
_TABLE = """)

// registry is what the contracts say of each reason.
var registry = map[Reason]reasonSpec{
"""


def available() -> bool:
    """Whether there is a Go toolchain. Raises `FileNotFoundError` in continuous integration when there is none."""
    if shutil.which("go") is not None:
        return True
    if os.environ.get("CI") == "true":
        raise FileNotFoundError("go is missing, and CI=true runs everything; install it from https://go.dev/dl")
    return False


def tools() -> Path:
    """The folder with the pinned programs, built when they are not current. Raises `CalledProcessError`."""
    folder = ROOT / ".cache/go"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["go", "build", "-buildvcs=false", "-o", f"{folder}/", *TOOLS], cwd=ROOT / SDK / "tools", check=True)
    return folder


def compile_go(stripped: Path, protobuf: Path, target: Path) -> None:
    """Write Go's generated files under `target`, from an image without validation rules.

    `protobuf` is the folder of protobuf's own files. Raises `CalledProcessError`.
    """
    plugins = tools()
    image = descriptor_pb2.FileDescriptorSet.FromString(stripped.read_bytes())
    homes = {
        file.name: home for file in image.file for folder, home in PACKAGES.items() if file.name.startswith(folder)
    }
    (target / SDK).mkdir(parents=True)
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--descriptor_set_in={stripped}", f"-I{protobuf}"]
    for name in ("go", "go-grpc"):
        command += [f"--plugin=protoc-gen-{name}={plugins / f'protoc-gen-{name}'}", f"--{name}_out={target / SDK}"]
        command += [f"--{name}_opt=module={MODULE}"]
        command += [f"--{name}_opt=M{file}={MODULE}/{home}" for file, home in homes.items()]
    subprocess.run([*command, *homes], cwd=ROOT, check=True)
    (target / REASONS).write_text(_reasons(stripped.read_bytes()))
    subprocess.run(["gofmt", "-w", str(target / REASONS)], check=True)


def generated(root: Path) -> list[Path]:
    """Every file of Go under `root` that is generated."""
    return [*(root / SDK).rglob("*.pb.go"), root / REASONS]


def _reasons(image: bytes) -> str:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(image).file:
        pool.Add(file)
    spec: Any = pool.FindExtensionByName("antiphon.options.v1.error")
    values = message_factory.GetMessageClass(pool.FindMessageTypeByName("google.protobuf.EnumValueOptions"))
    names, rows = [], []
    for value in pool.FindEnumTypeByName("antiphon.v1.ErrorReason").values[1:]:
        reason = value.name.removeprefix("ERROR_REASON_")
        options: Any = values.FromString(value.GetOptions().SerializeToString())
        row = options.Extensions[spec]
        name = "".join(word.capitalize() for word in reason.split("_"))
        remedy = spec.message_type.fields_by_name["remedy"].enum_type.values_by_number[row.remedy].name
        names.append(f'\t// {name}: {row.message}.\n\t{name} Reason = "{reason}"\n')
        remedy = "".join(word.capitalize() for word in remedy.removeprefix("REMEDY_").split("_"))
        rows.append(f"\t{name}: {{codes.Code({row.code}), {remedy}}},\n")
    return _HEAD + "".join(names) + _TABLE + "".join(rows) + "}\n"

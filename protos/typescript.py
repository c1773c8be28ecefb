"""The TypeScript code under sdk/typescript/src/gen, made from the same image as everything else by ts-proto.

Our own options are taken out with the validation ones: all that a TypeScript program needs of them is the table of
errors, which is written here. The generator is a development dependency of the SDK, at the version that its lock file
names; it is a filter from a CodeGeneratorRequest to a CodeGeneratorResponse, so protoc is not needed, nor the network.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.compiler import plugin_pb2
from google.rpc import error_details_pb2, status_pb2

OUT = Path("sdk/typescript/src/gen")
PLUGIN = Path("sdk/typescript/node_modules/ts-proto/protoc-gen-ts_proto")
_OPTIONS = (
    "annotateFilesWithVersion=false",
    "env=node",
    "esModuleInterop=true",
    "importSuffix=.js",
    "oneof=unions-value",
    "outputClientImpl=false",
    "outputServices=grpc-js",
    "outputJsonMethods=false",
    "outputIndex=false",
    "removeEnumPrefix=true",
    "unknownFields=true",
    "unrecognizedEnum=false",
    "useDate=true",
    "useExactTypes=false",
)
_PREFIX = "ERROR_REASON_"


def compile_typescript(full: bytes, root: Path, target: Path) -> None:
    """Write `OUT` under `target` from the full image, with the generator of the checkout `root`."""
    request = plugin_pb2.CodeGeneratorRequest(parameter=",".join(_OPTIONS))
    for module in (error_details_pb2, status_pb2):
        for name in ("google/protobuf/any.proto", "google/protobuf/duration.proto", module.DESCRIPTOR.name):
            _add(request, descriptor_pool.Default().FindFileByName(name))
    request.proto_file.extend(
        file for file in _bare(full) if file.name not in {known.name for known in request.proto_file}
    )
    request.file_to_generate.extend(
        file.name for file in request.proto_file if not file.name.startswith("google/protobuf/")
    )
    done = subprocess.run(
        ["node", str(root / PLUGIN)], input=request.SerializeToString(), stdout=subprocess.PIPE, check=True
    )
    response = plugin_pb2.CodeGeneratorResponse.FromString(done.stdout)
    if response.error:
        raise SystemExit(f"ts-proto: {response.error}")
    for file in response.file:
        path = target / OUT / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.content)
    (target / OUT / "reasons.ts").write_text(_reasons(full))
    (target / OUT / "v1.ts").write_text(_names(request))


def _add(request: plugin_pb2.CodeGeneratorRequest, file: Any) -> None:
    if file.name not in {known.name for known in request.proto_file}:
        file.CopyToProto(request.proto_file.add())


def _bare(full: bytes) -> Iterator[descriptor_pb2.FileDescriptorProto]:
    """The public package and what it needs of Google's, without an option that is not protobuf's own."""
    # A pool of its own: in the default one the extensions may be known, and would not be discarded.
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(descriptor_pb2.DESCRIPTOR.serialized_pb)
    image: Any = message_factory.GetMessageClass(
        pool.FindMessageTypeByName("google.protobuf.FileDescriptorSet")
    ).FromString(full)
    image.DiscardUnknownFields()
    for file in descriptor_pb2.FileDescriptorSet.FromString(image.SerializeToString()).file:
        if file.package not in ("antiphon.v1", "google.protobuf") or file.name.endswith("/descriptor.proto"):
            continue
        del file.extension[:]
        kept = [name for name in file.dependency if not name.startswith(("buf/", "antiphon/options/"))]
        file.dependency[:] = [name for name in kept if not name.endswith("/descriptor.proto")]
        yield file


def _names(request: plugin_pb2.CodeGeneratorRequest) -> str:
    """One module with every message, enumeration and service of the public package; each file has more than those."""
    lines = ["// Generated from protos/; do not edit."]
    for file in sorted(request.proto_file, key=lambda file: file.name):
        if file.package == "antiphon.v1":
            names = [*(one.name for one in file.message_type), *(one.name for one in file.enum_type)]
            names += [f"{one.name}Service" for one in file.service]
            lines.append(f'export {{ {", ".join(sorted(names))} }} from "./{file.name.removesuffix(".proto")}.js";')
    lines.append('export { Duration } from "./google/protobuf/duration.js";')
    return "\n".join(lines) + "\n"


def _reasons(full: bytes) -> str:
    """The registry of errors as a table: reason → gRPC code, remedy and what it means."""
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(full).file:
        pool.Add(file)
    # The options are parsed anew, with classes that know the extension.
    options = message_factory.GetMessageClass(pool.FindMessageTypeByName("google.protobuf.EnumValueOptions"))
    extension: Any = pool.FindExtensionByName("antiphon.options.v1.error")
    rows = []
    for value in pool.FindEnumTypeByName("antiphon.v1.ErrorReason").values:
        raw: Any = options.FromString(value.GetOptions().SerializeToString())
        if not raw.HasExtension(extension):
            continue
        spec = raw.Extensions[extension]
        remedy = extension.message_type.fields_by_name["remedy"].enum_type.values_by_number[spec.remedy].name
        row = f'{{ code: {spec.code}, remedy: "{remedy.removeprefix("REMEDY_")}" }}'
        rows.append(f"  /** {json.dumps(spec.message)[1:-1]} */\n  {value.name.removeprefix(_PREFIX)}: {row},\n")
    return (
        "// Generated from protos/antiphon/v1/error.proto; do not edit.\n\n"
        "/** The registry of errors: the gRPC status code of each reason, and what code should do about it. */\n"
        f"export const REASONS = {{\n{''.join(rows)}}} as const;\n"
    )

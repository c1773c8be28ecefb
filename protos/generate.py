"""Generates everything that is derived from the contracts; `make gen` runs it, `make check` fails on a difference.

Written: the Python code under sdk/python/antiphon (from an image without the validation options, because a second copy
of validate.proto in a user's process would be a descriptor-pool error); the TypeScript code under
sdk/typescript/src/gen, where Node is there, and the Go code of sdk/go, where there is a Go toolchain (`golang.py`); the
servers' full image, which holds the validation rules and options; and the reference pages under docs/reference. Nothing
is fetched but what lock files name: buf and protoc come from Python packages, Go's plugins from its module proxy, once.
What has not changed is not written again, so that what runs from this checkout is not disturbed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import golang
import grpc_tools
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from reference import PAGES, pages
from typescript import OUT as TYPESCRIPT
from typescript import compile_typescript

ROOT = Path(__file__).resolve().parent.parent
SDK = Path("sdk/python")
PACKAGES = (
    "antiphon/v1",
    "antiphon/mesh",
    "antiphon/store",
    "antiphon/options",
    "antiphon/etcd",
    "antiphon/conformance",
)
IMAGE = Path("orchestrator/antiphon_orchestrator/api/contracts.binpb")
REFERENCE = Path("docs/reference")


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

    result: Any = files.FromString(image)
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


def generate(target: Path, *, typescript: bool) -> None:
    """Make the whole of `generated()` under `target`, which is empty. Raises `CalledProcessError`."""
    sdk, image_file = target / SDK, target / IMAGE
    sdk.mkdir(parents=True)
    image_file.parent.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        full = Path(scratch) / "full.binpb"
        buf("build", "--as-file-descriptor-set", "-o", str(full))
        stripped = Path(scratch) / "stripped.binpb"
        stripped.write_bytes(without_validation(full.read_bytes()))
        compile_python(stripped, sdk)
        if typescript:
            compile_typescript(full.read_bytes(), ROOT, target)
        if golang.available():
            golang.compile_go(stripped, Path(grpc_tools.__file__).parent / "_proto", target)
        (target / REFERENCE).mkdir(parents=True)
        for name, text in pages(full.read_bytes()).items():
            (target / REFERENCE / name).write_text(text)
    for package in PACKAGES:
        # A package needs its marker; generators write none.
        for folder in [sdk / package, *(path for path in (sdk / package).rglob("*") if path.is_dir())]:
            (folder / "__init__.py").write_text('"""Generated from protos/; do not edit."""\n')
    # Nobody calls us with etcd's messages, so they need no rules.
    ours = ("--exclude-path", "protos/antiphon/etcd")
    buf("build", "--as-file-descriptor-set", "--exclude-source-info", *ours, "-o", str(image_file))


def compile_python(stripped: Path, sdk: Path) -> None:
    image = descriptor_pb2.FileDescriptorSet.FromString(stripped.read_bytes())
    bin_folder = Path(sys.executable).parent
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc"),
        f"--descriptor_set_in={stripped}",
        f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
        *(f"--plugin=protoc-gen-{name}={bin_folder / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")),
        *(f"--{name}_out={sdk}" for name in ("python", "grpc_python")),
        *(f"--{name}_out=quiet:{sdk}" for name in ("mypy", "mypy_grpc")),
        *(file.name for file in image.file if file.name.startswith("antiphon/")),
    ]
    subprocess.run(command, cwd=ROOT, check=True)


def generated(root: Path, *, typescript: bool) -> dict[Path, bytes]:
    """Every generated file under `root`, by its path from there."""
    folders = [root / SDK / package for package in PACKAGES]
    found = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".pyi")]
    found += [root / IMAGE, *(root / REFERENCE / name for name in PAGES)]
    if typescript:
        found += (root / TYPESCRIPT).rglob("*.ts")
    if golang.available():
        found += golang.generated(root)
    return {path.relative_to(root): path.read_bytes() for path in found if path.is_file()}


def node_is_there() -> bool:
    """Whether TypeScript can be generated; else one line has said why not. Raises `SystemExit` when npm failed."""
    done = subprocess.run([sys.executable, str(ROOT / "tools/node.py")])
    if done.returncode not in (0, 3):
        raise SystemExit(done.returncode)
    return done.returncode == 0


def main(arguments: list[str]) -> int:
    """Bring the checkout up to date; with `--check` only say which files are not, and answer 1 when there are any."""
    typescript = node_is_there()
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch) / "new", typescript=typescript)
        new, old = generated(Path(scratch) / "new", typescript=typescript), generated(ROOT, typescript=typescript)
    different = sorted(path for path in {*new, *old} if new.get(path) != old.get(path))
    if "--check" in arguments:
        for path in different:
            print(f"{path} is not what protos/ gives; run: make gen")
        if not golang.available():
            print("Go's stubs were not looked at: go is not on the PATH")
        return 1 if different else 0
    for path in different:
        if path in new:
            (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / path).write_bytes(new[path])
        else:
            (ROOT / path).unlink()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""The servers' image of all contracts, as the tests of contracts read it."""

from __future__ import annotations

from importlib.resources import files

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet


@pytest.fixture(scope="session")
def image() -> FileDescriptorSet:
    """Every file of the contracts with its options, dependencies before their users."""
    return FileDescriptorSet.FromString((files("antiphon_orchestrator") / "api/contracts.binpb").read_bytes())

"""Never succeeds, so that nothing is known of its outputs."""

from __future__ import annotations

from typing import Any

from antiphon.v1 import agent_service_pb2 as pb
from antiphon.v1 import failure_pb2 as failures
from raw import Failed, Raw, main


class Broken(Raw):
    async def ask(self, assignment: pb.Assignment, value: Any) -> Any:
        await super().ask(assignment, value)
        raise Failed(failures.FAILURE_KIND_TRANSIENT, "always busy")


if __name__ == "__main__":
    main(Broken)

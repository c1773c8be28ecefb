"""Says that it has room for 16, and drops what comes beyond 4."""

from __future__ import annotations

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    def hear(self, response: pb.WorkResponse) -> None:
        if response.assignments and response.assignments[0].attempt_id.startswith("verify-back-pressure/"):
            del response.assignments[4:]
        super().hear(response)


if __name__ == "__main__":
    main(Broken)

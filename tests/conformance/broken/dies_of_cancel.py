"""Is ended by a cancel of what it does not have."""

from __future__ import annotations

import os

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    def cancel(self, cancel: pb.AttemptCancel) -> None:
        if cancel.attempt_id.startswith("verify/never-was/"):
            os._exit(3)
        super().cancel(cancel)


if __name__ == "__main__":
    main(Broken)

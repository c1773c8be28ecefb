"""Stops what is cancelled, and gives no outcome of it."""

from __future__ import annotations

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    def cancel(self, cancel: pb.AttemptCancel) -> None:
        if cancel.reason == "cancelled":
            if task := self.tasks.pop(cancel.attempt_id, None):
                task.cancel()
        else:
            super().cancel(cancel)


if __name__ == "__main__":
    main(Broken)

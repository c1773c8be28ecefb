"""Told to drain, leaves at once."""

from __future__ import annotations

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    def drain(self) -> None:
        self.draining = True
        for task in self.tasks.values():
            task.cancel()
        self.up.put_nowait(None)

    def cancelled(self, result: pb.Result) -> None:
        if not self.draining:
            super().cancelled(result)


if __name__ == "__main__":
    main(Broken)

"""Says that it is 700 percent done."""

from __future__ import annotations

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    def progress(self, assignment: pb.Assignment) -> None:
        update = pb.ProgressUpdate(attempt_id=assignment.attempt_id)
        update.progress.fraction = 7.0
        self.say(pb.WorkRequest(progress=[update]))


if __name__ == "__main__":
    main(Broken)

"""Sends more news in one message than it may."""

from __future__ import annotations

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    def progress(self, assignment: pb.Assignment) -> None:
        self.say(pb.WorkRequest(progress=[pb.ProgressUpdate(attempt_id=assignment.attempt_id)] * 300))


if __name__ == "__main__":
    main(Broken)

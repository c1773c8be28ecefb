"""Works an attempt as often as it is assigned."""

from __future__ import annotations

import asyncio

from antiphon.v1 import agent_service_pb2 as pb
from raw import Raw, main


class Broken(Raw):
    def assigned(self, assignment: pb.Assignment) -> None:
        if assignment.attempt_id in self.tasks:
            self.tasks[f"{assignment.attempt_id} again"] = asyncio.create_task(self.second(assignment))
        super().assigned(assignment)

    async def second(self, assignment: pb.Assignment) -> None:
        await self.work(assignment)
        self.tasks.pop(f"{assignment.attempt_id} again")


if __name__ == "__main__":
    main(Broken)

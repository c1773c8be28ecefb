/** What waits to be said, in messages that a sidecar takes. */
import { expect, test } from "vitest";

import { Outbox } from "../src/outbox.js";
import { CallRequest, ContextRequest, WorkRequest } from "../src/v1.js";

test("calls and requests to shared context have the room of a message together", async () => {
  const outbox = new Outbox();
  const token = Buffer.alloc(300_000);
  for (let number = 0; number < 4; number += 1) {
    outbox.call(CallRequest.fromPartial({ callId: String(number), attemptToken: token }), token.length);
    outbox.ask(ContextRequest.fromPartial({ requestId: String(number), attemptToken: token }), token.length);
  }
  const told: string[] = [];
  while (!outbox.empty) {
    const request = await outbox.take(new AbortController().signal) ?? WorkRequest.fromPartial({});
    expect(WorkRequest.encode(request).finish().length).toBeLessThan((1 << 20) + 310_000);
    told.push(...request.calls.map(({ callId }) => `call ${callId}`), ...request.contextRequests.map(({ requestId }) => `ask ${requestId}`));
  }
  expect(told.sort()).toEqual(["ask 0", "ask 1", "ask 2", "ask 3", "call 0", "call 1", "call 2", "call 3"]);
});

/** The measured agent in TypeScript: answers with its input, as benchmarks/agent.py does. */
import { Agent } from "@antiphon/sdk";

// Slots are no bottleneck here: as many as the largest number of runs in flight, and as many again on their way.
const agent = new Agent("bench-typescript", { concurrency: 1000, prefetch: 1000 });

const message = { type: "object", properties: { text: { type: "string" } }, required: ["text"] } as const;

agent.capability("echo-typescript@1", { effect: "pure", input: message, output: message }, (given) => given);

await agent.run();

import { Agent } from "@antiphon/sdk";

const agent = new Agent("hello");
const person = { type: "object", properties: { name: { type: "string" } }, required: ["name"] };

agent.capability("hello.greet@1", { effect: "pure", idempotent: true, input: person, output: { type: "string" } },
  ({ name }) => `Hello, ${name}!`,
);

await agent.run();

import { Agent } from "@antiphon/sdk";

const agent = new Agent("hello");

agent.capability(
  "hello.greet@1",
  {
    description: "Greets a person by name.",
    effect: "pure",
    idempotent: true,
    input: { type: "object", properties: { name: { type: "string" } }, required: ["name"] },
    output: { type: "string" },
  },
  (person) => `Hello, ${person.name}!`,
);

await agent.run();

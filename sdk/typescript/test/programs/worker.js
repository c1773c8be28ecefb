/** The agent process of the tests with a whole mesh: one capability for each thing a task can meet. */
import { appendFileSync, existsSync } from "node:fs";

import { Agent, permanent, transient } from "@antiphon/sdk";

const agent = new Agent("worker", { concurrency: 4 });
const note = (text) => { appendFileSync(process.env.AGENT_JOURNAL, `${text}\n`); };

agent.capability("work.echo@1", {}, (input) => input);

agent.capability("work.who@1", {}, (_, task) => ({ pid: process.pid, number: task.number, key: task.idempotencyKey }));

// Works until a file is there; when its process is killed, another finds the attempt's number.
agent.capability("work.hold@1", { input: { type: "string" } }, async (gate, task) => {
  note(`begun ${task.attemptId}`);
  while (!existsSync(gate)) {
    task.signal.throwIfAborted();
    task.emit("hold ");
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  return { pid: process.pid, number: task.number };
});

agent.capability("work.wait@1", {}, async (_, task) => {
  note(`begun ${task.attemptId}`);
  await new Promise((_resolve, reject) => {
    task.signal.addEventListener("abort", () => { reject(task.signal.reason); });
  });
});

agent.capability("work.fail@1", {}, (how, task) => {
  if (how === "once" && task.number > 1) return "done";
  throw how === "permanent" ? permanent("never", { code: "no_use" }) : transient("not yet", { code: "busy" });
});

agent.capability("work.call@1", {}, async (input, task) => await task.call("work.echo@1", input));

agent.capability("work.share@1", {}, async (input, task) => {
  const { context } = task;
  return await context.claim("shared", async (claim) => {
    const revision = await context.put("shared/value", input, { claim, labels: ["pii"] });
    const [entry] = await context.list("shared/");
    let seen;
    for await (const event of context.watch("shared/", { fromRevision: revision })) {
      seen = event.kind?.$case;
      break;
    }
    let refused;
    try {
      await context.put("shared/value", 0, { expectedRevision: revision - 1 });
    } catch (error) {
      refused = error.reason;
    }
    return { same: entry.revision === revision, seen, refused, value: await context.get("shared/value") };
  });
});

await agent.run();

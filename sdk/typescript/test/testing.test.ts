/** The kit for users' tests, with the installed command. */
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";

import { expect, test } from "vitest";

import { Agent, type Client, Graph, outputOf, ref, Subgraph } from "../src/index.js";
import { withMesh } from "../src/testing.js";

test("a mesh runs an agent of the test and a client of it, and nothing outlives it", async () => {
  const quiet = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };
  const agent = new Agent("greeter", { logger: quiet });
  agent.capability("text.greet@1", { effect: "pure", output: { type: "string" } }, (name: string) => `Hello, ${name}!`);
  agent.capability("text.greet_all@1", { output: { type: "array", items: { type: "string" } } }, (names: string[]) => {
    if (names.length === 0) return [];
    const all = new Graph("all", { output: ref("tasks.each.output") });
    all.task("each", "text.greet@1", { forEach: ref("input") });
    return new Subgraph(all, names);
  });
  const graph = new Graph("greet", { output: ref("tasks.greet.output") });
  graph.task("greet", "text.greet@1", { input: ref("input") });
  let home = "";
  await withMesh(async (mesh) => {
    home = mesh.home;
    const stop = await mesh.run(agent);
    for (const name of ["Ada", "Grace"]) {
      expect(outputOf(await mesh.client.submit(graph, name, { wait: true }))).toBe(`Hello, ${name}!`);
    }
    const everybody = new Graph("everybody", { output: ref("tasks.greet.output") });
    everybody.task("greet", "text.greet_all@1", { input: ref("input") });
    for (const names of [["Ada", "Grace"], []]) {
      const greetings = names.map((name) => `Hello, ${name}!`);
      expect(outputOf(await mesh.client.submit(everybody, names, { wait: true }))).toEqual(greetings);
    }
    await operate(mesh.operator);
    expect((await mesh.operator.suspendAgent("greeter")).name).toBe("greeter");
    expect(existsSync(join(home, "profiles", "default", "profile.toml"))).toBe(true);
    await stop();
  });
  expect(existsSync(home)).toBe(false);
  expect(execFileSync("ps", ["-eo", "args"]).toString()).not.toContain(home);
});

/** What an operator does besides looking after agents. */
async function operate(operator: Client): Promise<void> {
  const { epoch, files } = await operator.getPolicy();
  expect((await operator.rollBackPolicies(epoch, { expectedEpoch: epoch })).epoch).toBe(epoch + 1);
  const again = operator.activatePolicies(Object.fromEntries(files.map(({ name, text }) => [name, text])), { expectedEpoch: epoch });
  await expect(again).rejects.toMatchObject({ reason: "POLICY_EPOCH_CHANGED" });
  await operator.revokeCertificates({ kind: "client", name: "nobody" }, "a test");
  const revoked = await all(operator.listRevocations());
  expect(revoked).toMatchObject([{ subject: { $case: "identity", value: { name: "nobody" } }, cause: "a test" }]);
  const { heads } = await operator.getAuditCheckpoint();
  const chains = await Promise.all(heads.map(({ chain }) => all(operator.listAuditRecords(chain))));
  expect(chains.flat().map(({ resource }) => resource).join()).toContain("nobody");
}

async function all<Item>(items: AsyncIterable<Item>): Promise<Item[]> {
  const found: Item[] = [];
  for await (const item of items) found.push(item);
  return found;
}

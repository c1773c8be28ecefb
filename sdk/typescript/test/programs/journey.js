/** What a user of the client does, one thing after the other; prints what came of it as JSON. Needs the agent `worker`. */
import { AntiphonError, Client, entryValue, Graph, outputOf, ref, RunFailed } from "@antiphon/sdk";
import { RunState, TaskState } from "@antiphon/sdk/v1";

const said = {};

/** The reason with which something is refused. */
async function reason(doing) {
  try {
    await doing();
  } catch (error) {
    if (error instanceof AntiphonError) return `${error.reason}/${String(error.remedy)}`;
    throw error;
  }
  return "nothing was refused";
}

const client = await Client.connect();

const graph = new Graph("journey", { version: "1", output: ref("tasks.echo.output") });
graph.task("echo", "work.echo@1", { input: { text: `Dear ${ref("input.name")}`, all: ref("input") } });
const valid = await client.validateGraph(graph);
said.mistakes = valid.violations?.length ?? 0;
await client.registerGraph(graph);
said.graphs = [];
for await (const one of client.listGraphs("journey")) said.graphs.push(`${one.graph.name}@${one.graph.version}`);

const run = await client.submit("journey@1", { name: "Ada" }, { wait: true, labels: { by: "journey" } });
said.output = outputOf(run);
said.again = (await client.submit("journey", { name: "Ada" }, { requestId: "one", wait: true })).runId
  === (await client.submit("journey", { name: "Ada" }, { requestId: "one", wait: true })).runId;
said.reused = await reason(() => client.submit("journey", { name: "Eve" }, { requestId: "one", wait: true }));

said.events = [];
for await (const event of client.watch(run.runId)) said.events.push(event.eventSeq);
said.rest = [];
for await (const event of client.watch(run.runId, { cursor: said.events[1] })) said.rest.push(event.eventSeq);

said.tasks = [];
for await (const task of client.listTasks(run.runId)) said.tasks.push([task.key.taskId, TaskState[task.state]]);
const explained = await client.explain(run.runId, "echo");
said.agent = explained.attempts[0].agent;
said.runs = [];
for await (const one of client.listRuns({ labels: { by: "journey" } })) said.runs.push(RunState[one.state]);
said.agents = [];
for await (const one of client.listAgents()) said.agents.push([one.name, one.description.runtime.split("/")[0]]);

const waiting = new Graph("waiting");
waiting.task("wait", "work.wait@1");
const held = await client.submit(waiting);
said.late = await reason(() => client.wait(held.runId, { timeout: 50 }));
await client.cancel(held.runId, "enough");
const ended = await client.wait(held.runId);
said.cancelled = RunState[ended.state];
try {
  outputOf(ended);
} catch (error) {
  said.failed = error instanceof RunFailed;
}

said.missing = await reason(() => client.getRun("none"));
said.noGraph = await reason(() => client.submit("none"));
said.invalid = await reason(() => client.submit(new Graph("Not A Name")));

const put = await client.putEntry("journey/a", { big: "x".repeat(100_000) }, { expectedRevision: 0, labels: ["region=eu"] });
said.conflict = await reason(() => client.putEntry("journey/a", 1, { expectedRevision: 0 }));
const entry = await client.getEntry("journey/a");
said.kept = entry.value.content.$case;
said.bytes = (await client.downloadPayload(entry.value.content.value.digest)).length;
said.labels = entry.value.labels.map((one) => `${one.key}=${one.value}`);
const seen = client.watchEntries("journey/", { fromRevision: put.revision + 1 });
const change = seen.next();
await client.claim("journey", async (claim) => { await client.putEntry("journey/b", 7, { claim }); });
const { value: event } = await change;
said.change = [event.kind.$case, entryValue(event.kind.value)];
await seen.return();
said.removed = (await client.deleteEntry("journey/b")) > 0;
said.gone = await reason(() => client.getEntry("journey/b"));

const decision = await client.checkPolicy("submit", "journey");
said.allowed = decision.decision?.permit ?? decision.permit;

const answers = [];
const submitter = client.submitter(64);
for (let n = 0; n < 300; n += 1) {
  answers.push((await submitter.submit("journey", { name: String(n) }, { wait: true })).answer);
}
said.many = new Set((await Promise.all(answers)).map((one) => outputOf(one).all.name)).size;
const refused = (await submitter.submit("none")).answer;
said.refused = await reason(() => refused);
await submitter.close();
client.close();

process.stdout.write(`${JSON.stringify(said)}\n`);

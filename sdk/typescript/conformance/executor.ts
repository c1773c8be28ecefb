/**
 * The conformance executor of the TypeScript SDK: `executor.js agent CONCURRENCY` or `executor.js client`.
 *
 * What it must do is said in protos/antiphon/conformance/v1/executor.proto and in sdk/README.md. It uses what users of the
 * SDK have, and nothing besides.
 */
import { createInterface } from "node:readline";

import {
  Agent,
  AntiphonError,
  CallFailed,
  Client,
  Credentials,
  entryValue,
  Failure,
  Graph,
  type Kind,
  outputOf,
  Payload,
  ref,
  type Revoked,
  Subgraph,
  type Task,
} from "@antiphon/sdk";
import {
  AuditOutcome,
  FailureKind,
  type PartialOutput,
  type PolicySet,
  type Run,
  RunState,
  type Task as RunTask,
  TaskState,
} from "@antiphon/sdk/v1";
import { status } from "@grpc/grpc-js";

// The agent

interface Step {
  output_json?: string;
  large?: number;
  describe?: boolean;
  count?: string;
  progress?: { fraction?: number; message?: string };
  call?: { capability?: string; input_json?: string; call_id?: string; caught?: boolean; emitted?: boolean };
  emit_text?: string;
  emit_json?: string;
  fail?: { kind: string; message?: string; code?: string; retryable?: boolean; field?: string };
  crash?: string;
  wait_cancelled?: boolean;
  subgraph?: { capability?: string; input_json?: string; description?: number };
}

const PACKAGE = {
  type: "object",
  properties: { name: { type: "string" }, files: { type: "integer", default: 0 } },
  required: ["name"],
} as const;
const VERDICT = {
  type: "object",
  properties: { name: { type: "string" }, fine: { type: "boolean" } },
  required: ["name", "fine"],
} as const;

function agentOf(concurrency: number): Agent {
  const counts = new Map<string, number>();
  const agent = new Agent("conformance", { concurrency });
  agent.capability("conformance.script@1", { effect: "pure", idempotent: true }, async (input: { steps?: Step[] }, task) => {
    let result: unknown = null;
    for (const step of input.steps ?? []) {
      const value = await play(step, task, counts);
      if (value !== undefined) result = value;
    }
    return result;
  });
  agent.capability("conformance.judge@1", { effect: "pure", input: PACKAGE, output: VERDICT }, ({ name, files = 0 }) => ({
    name,
    fine: files > 0,
  }));
  agent.capability("conformance.reverse@1", { input: Payload }, (payload) => {
    const data = Buffer.from(payload.data ?? []).reverse();
    return Payload.inline(data, payload.message.mediaType);
  });
  return agent;
}

/** Do one step: its value, if it has one. */
async function play(step: Step, task: Task, counts: Map<string, number>): Promise<unknown> {
  if (step.output_json !== undefined) return JSON.parse(step.output_json);
  if (step.large !== undefined) return "x".repeat(step.large);
  if (step.describe === true) return described(task);
  if (step.count !== undefined) {
    const count = (counts.get(step.count) ?? 0) + 1;
    counts.set(step.count, count);
    return count;
  }
  if (step.progress !== undefined) task.progress(step.progress.fraction ?? 0, step.progress.message ?? "");
  if (step.emit_text !== undefined) task.emit(step.emit_text);
  if (step.emit_json !== undefined) task.emit(JSON.parse(step.emit_json));
  if (step.subgraph !== undefined) return apart(step.subgraph);
  if (step.call !== undefined) return await call(task, step.call);
  if (step.fail !== undefined) {
    const { kind, message = "", code = "", field = "" } = step.fail;
    const retryable = kind === "FAILURE_KIND_TRANSIENT" || (step.fail.retryable ?? false);
    throw new Failure(kind.slice("FAILURE_KIND_".length) as Kind, message, { code, retryable, field });
  }
  if (step.crash !== undefined) throw new Error(step.crash);
  if (step.wait_cancelled === true) {
    await new Promise((_resolve, reject) => {
      const stop = (): void => { reject(task.signal.reason as Error); };
      if (task.signal.aborted) stop();
      task.signal.addEventListener("abort", stop, { once: true });
    });
  }
  return undefined;
}

function apart({ capability = "", input_json, description = 0 }: NonNullable<Step["subgraph"]>): Subgraph {
  const graph = new Graph("apart", { description: "x".repeat(description) });
  graph.task("part", capability, { input: ref("input") });
  return new Subgraph(graph, input_json === undefined ? undefined : JSON.parse(input_json));
}

function described(task: Task): Record<string, unknown> {
  return {
    attempt_id: task.attemptId,
    run_id: task.runId,
    number: task.number,
    idempotency_key: task.idempotencyKey,
    capability: task.capability,
    namespace: task.namespace,
    principal: task.principal,
    delegation: task.delegation,
    traceparent: task.traceparent,
    deadline: task.deadline !== undefined,
  };
}

async function call(task: Task, asked: NonNullable<Step["call"]>): Promise<unknown> {
  const { capability = "", input_json = "null", call_id, caught = false, emitted = false } = asked;
  const onPartial = ({ content }: PartialOutput): void => {
    if (content?.$case === "text") task.emit(content.value);
  };
  try {
    return await task.call(capability, JSON.parse(input_json), {
      ...(call_id === undefined ? {} : { callId: call_id }),
      ...(emitted ? { onPartial } : {}),
    });
  } catch (error) {
    if (!caught || !(error instanceof CallFailed)) throw error;
    return { kind: `FAILURE_KIND_${FailureKind[error.failure.kind]}`, code: error.failure.code };
  }
}

// The client

interface Settings {
  addresses?: string[];
  certificate_file?: string;
  key_file?: string;
  bundle_file?: string;
  timeout?: string;
}

interface TaskCall {
  run_id?: string;
  task_id?: string;
  member?: number;
  reason?: string;
  output_json?: string;
  failure?: string;
  dependents?: boolean;
}

interface PoliciesCall {
  files?: Record<string, string>;
  epoch?: number;
  expected_epoch?: number;
}

interface Call {
  submit?: { graph?: string; input_json?: string; wait?: boolean; request_id?: string };
  submit_many?: { graph?: string; count?: number };
  get_run?: { run_id?: string };
  wait?: { run_id?: string };
  watch?: { run_id?: string };
  watch_partials?: { run_id?: string };
  signal?: { run_id?: string; signal?: string; data_json?: string; request_id?: string };
  pause?: { run_id?: string };
  resume?: { run_id?: string };
  cancel_task?: TaskCall;
  retry_task?: TaskCall;
  resolve_task?: TaskCall;
  fail_task?: TaskCall;
  cancel?: { run_id?: string };
  list_runs?: {
    page_size?: number;
    states?: string[];
    graph?: string;
    labels?: Record<string, string>;
    created_after?: string;
    created_before?: string;
    parent?: string;
    failure?: string;
    waiting_for_person?: boolean;
    waiting_for_signal?: boolean;
  };
  list_agents?: boolean;
  get_entry?: { key?: string };
  put_entry?: { key?: string; value_json?: string; expected_revision?: string };
  revoke?: { kind?: string; name?: string; serial?: string; cause?: string };
  list_revocations?: boolean;
  activate_policies?: PoliciesCall;
  roll_back_policies?: PoliciesCall;
  list_policies?: boolean;
  get_policy?: PoliciesCall;
  list_audit_records?: { chain?: string; newest_first?: boolean; action?: string; denied?: boolean; start_time?: string };
  get_audit_checkpoint?: boolean;
}

/** Answer each line of standard input with one on standard output. */
async function converse(): Promise<void> {
  let client: Client | undefined;
  let settings = "";
  for await (const line of createInterface({ input: process.stdin })) {
    const request = JSON.parse(line) as { id: number; client?: Settings; call?: Call };
    let outcome: object;
    try {
      const wanted = JSON.stringify(request.client ?? {});
      if (client === undefined || wanted !== settings) {
        client?.close();
        client = await connect(request.client ?? {});
        settings = wanted;
      }
      outcome = { answer: await answer(client, request.call ?? {}) };
    } catch (error) {
      outcome = error instanceof AntiphonError ? { error: told(error) } : { broken: String(error) };
    }
    process.stdout.write(`${JSON.stringify({ id: request.id, ...outcome })}\n`);
  }
  client?.close();
}

async function connect(settings: Settings): Promise<Client> {
  const { addresses = [], certificate_file = "", key_file = "", bundle_file = "", timeout = "10s" } = settings;
  const credentials = Credentials.fromFiles({ cert: certificate_file, key: key_file, bundle: bundle_file });
  return await Client.connect({ address: addresses, credentials, timeout: Number(timeout.slice(0, -1)) * 1000 });
}

async function answer(client: Client, asked: Call): Promise<object> {
  if (asked.submit !== undefined) {
    const { graph = "", input_json, wait = false, request_id } = asked.submit;
    const input: unknown = input_json === undefined ? undefined : JSON.parse(input_json);
    const id = request_id === undefined ? {} : { requestId: request_id };
    return runOf(await client.submit(graph, input, { wait, ...id }));
  }
  if (asked.submit_many !== undefined) return await submitMany(client, asked.submit_many);
  if (asked.get_run !== undefined) return runOf(await client.getRun(asked.get_run.run_id ?? ""));
  if (asked.wait !== undefined) return runOf(await client.wait(asked.wait.run_id ?? ""));
  if (asked.watch !== undefined) {
    return { event_seqs: await all(client.watch(asked.watch.run_id ?? ""), (event) => event.eventSeq) };
  }
  if (asked.watch_partials !== undefined) {
    const watched = client.watch(asked.watch_partials.run_id ?? "", { includePartials: true });
    const events = await all(watched, (event) => event);
    const pieces = events.flatMap(({ partial }) => partial ?? []);
    return {
      event_seqs: events.map((event) => event.eventSeq).filter((seq) => seq > 0),
      names: pieces.map(({ withheld, content }) => (withheld === "" ? (content?.value.toString() ?? "") : withheld)),
    };
  }
  if (asked.signal !== undefined) {
    const { run_id = "", signal = "", data_json, request_id } = asked.signal;
    const data: unknown = data_json === undefined ? undefined : JSON.parse(data_json);
    const key = await client.signal(run_id, signal, data, request_id === undefined ? {} : { requestId: request_id });
    return { names: [key?.taskId ?? ""] };
  }
  if (asked.pause !== undefined) return runOf(await client.pause(asked.pause.run_id ?? ""));
  if (asked.resume !== undefined) return runOf(await client.resume(asked.resume.run_id ?? ""));
  if (asked.cancel_task !== undefined) {
    const { dependents = false, ...task } = asked.cancel_task;
    return taskOf(await client.cancelTask(...named(task), { ...acting(task), dependents }));
  }
  if (asked.retry_task !== undefined) {
    return taskOf(await client.retry(...named(asked.retry_task), acting(asked.retry_task)));
  }
  if (asked.resolve_task !== undefined) {
    const output: unknown = JSON.parse(asked.resolve_task.output_json ?? "null");
    return taskOf(await client.resolve(...named(asked.resolve_task), { output }, acting(asked.resolve_task)));
  }
  if (asked.fail_task !== undefined) {
    const { failure = "" } = asked.fail_task;
    return taskOf(await client.resolve(...named(asked.fail_task), { failure }, acting(asked.fail_task)));
  }
  if (asked.cancel !== undefined) return runOf(await client.cancel(asked.cancel.run_id ?? ""));
  if (asked.list_runs !== undefined) {
    const { page_size = 0, states = [], created_after, created_before, ...rest } = asked.list_runs;
    const { waiting_for_person = false, waiting_for_signal = false, ...same } = rest;
    const runs = client.listRuns({
      ...same,
      pageSize: page_size,
      waitingForPerson: waiting_for_person,
      waitingForSignal: waiting_for_signal,
      states: states.map((name) => RunState[name.slice("RUN_STATE_".length) as keyof typeof RunState]),
      ...(created_after === undefined ? {} : { createdAfter: new Date(created_after) }),
      ...(created_before === undefined ? {} : { createdBefore: new Date(created_before) }),
    });
    return { run_ids: await all(runs, (run) => run.runId) };
  }
  if (asked.list_agents !== undefined) return { names: await all(client.listAgents(), (agent) => agent.name) };
  if (asked.get_entry !== undefined) {
    const entry = await client.getEntry(asked.get_entry.key ?? "");
    return { output_json: JSON.stringify(entryValue(entry)), revision: entry.revision };
  }
  if (asked.put_entry !== undefined) {
    const { key = "", value_json = "null", expected_revision } = asked.put_entry;
    const expected = expected_revision === undefined ? {} : { expectedRevision: Number(expected_revision) };
    return { revision: (await client.putEntry(key, JSON.parse(value_json), expected)).revision };
  }
  return await operate(client, asked);
}

/** What operators do. */
async function operate(client: Client, asked: Call): Promise<object> {
  if (asked.revoke !== undefined) {
    const { kind, name = "", serial = "", cause = "" } = asked.revoke;
    await client.revokeCertificates(kind === undefined ? { serial } : ({ kind, name } as Revoked), cause);
    return {};
  }
  if (asked.list_revocations !== undefined) {
    const names = await all(client.listRevocations(), ({ subject }) =>
      subject?.$case === "identity" ? `${subject.value.kind}/${subject.value.name}` : (subject?.value ?? ""),
    );
    return { names };
  }
  if (asked.activate_policies !== undefined) {
    const { files = {}, expected_epoch = 0 } = asked.activate_policies;
    return policyOf(await client.activatePolicies(files, { expectedEpoch: expected_epoch }));
  }
  if (asked.roll_back_policies !== undefined) {
    const { epoch = 0, expected_epoch = 0 } = asked.roll_back_policies;
    return policyOf(await client.rollBackPolicies(epoch, { expectedEpoch: expected_epoch }));
  }
  if (asked.get_policy !== undefined) return policyOf(await client.getPolicy(asked.get_policy.epoch));
  if (asked.list_policies !== undefined) return { event_seqs: await all(client.listPolicies(), ({ epoch }) => epoch) };
  if (asked.list_audit_records !== undefined) {
    const { chain = "", newest_first = false, action = "", denied = false, start_time } = asked.list_audit_records;
    const filter = {
      newestFirst: newest_first,
      action,
      ...(denied ? { outcome: AuditOutcome.DENIED } : {}),
      ...(start_time === undefined ? {} : { startTime: new Date(start_time) }),
    };
    const records = await all(client.listAuditRecords(chain, filter), (record) => record);
    return { event_seqs: records.map(({ seq }) => seq), names: records.map((record) => record.action) };
  }
  if (asked.get_audit_checkpoint !== undefined) {
    return { names: (await client.getAuditCheckpoint()).heads.map((head) => head.chain) };
  }
  throw new Error("this executor does not know the call");
}

function policyOf({ epoch, files }: PolicySet): object {
  return { revision: epoch, names: files.map((file) => file.name) };
}

async function submitMany(client: Client, many: NonNullable<Call["submit_many"]>): Promise<object> {
  const { graph = "", count = 0 } = many;
  const submitter = client.submitter();
  const answers: Promise<Run>[] = [];
  for (let number = 1; number <= count; number += 1) {
    const options = { wait: true, requestId: `many-${String(number)}` };
    answers.push((await submitter.submit(graph, undefined, options)).answer);
  }
  const runs = await Promise.all(answers);
  await submitter.close();
  return { run_ids: runs.map((run) => run.runId) };
}

function runOf(run: Run): object {
  const state = `RUN_STATE_${RunState[run.state]}`;
  if (run.state !== RunState.SUCCEEDED) return { run_id: run.runId, state };
  return { run_id: run.runId, state, output_json: JSON.stringify(outputOf(run)) };
}

function named({ run_id = "", task_id = "" }: TaskCall): [string, string] {
  return [run_id, task_id];
}

function acting({ member = 0, reason = "" }: TaskCall): { member: number; reason: string } {
  return { member, reason };
}

function taskOf(task: RunTask): object {
  const state = `TASK_STATE_${TaskState[task.state]}`;
  if (task.output === undefined) return { state };
  return { state, output_json: JSON.stringify(new Payload(task.output).json()) };
}

function told(error: AntiphonError): object {
  const { reason, remedy = "", code, metadata, violations, retryAfter } = error;
  return {
    reason,
    remedy,
    code: status[code],
    metadata,
    fields: violations.map((one) => one.field),
    ...(retryAfter === undefined ? {} : { retry_after: `${String(retryAfter / 1000)}s` }),
  };
}

async function all<Item, Value>(items: AsyncIterable<Item>, value: (item: Item) => Value): Promise<Value[]> {
  const found: Value[] = [];
  for await (const item of items) found.push(value(item));
  return found;
}

const [mode, concurrency] = process.argv.slice(2);
if (mode === "agent") await agentOf(Number(concurrency)).run();
else if (mode === "client") await converse();
else {
  process.stderr.write("usage: executor.js agent CONCURRENCY | executor.js client\n");
  process.exit(2);
}

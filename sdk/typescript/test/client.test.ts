/** The client at an orchestrator double over real mutual TLS, with answers a test decides. */
import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import {
  type sendUnaryData,
  Server,
  ServerCredentials,
  type ServerDuplexStream,
  type ServerUnaryCall,
  type ServerWritableStream,
  status,
} from "@grpc/grpc-js";
import { afterAll, beforeAll, expect, onTestFinished, test, vi } from "vitest";

import { AntiphonError, type CallTimes, Client, Credentials, Payload, RetryableError, SetupError, StaleError } from "../src/index.js";
import { type ClusterServiceServer, ClusterServiceService, GetClusterResponse, ReplicaStatus } from "../src/gen/antiphon/v1/cluster_service.js";
import { Graph } from "../src/gen/antiphon/v1/graph.js";
import { type PayloadServiceServer, PayloadServiceService } from "../src/gen/antiphon/v1/payload_service.js";
import { type RunServiceServer, type SubmitRunsRequest, SubmitRunsResponse } from "../src/gen/antiphon/v1/run_service.js";
import { RetryInfo } from "../src/gen/google/rpc/error_details.js";
import { REASONS } from "../src/gen/reasons.js";
import { type GetRunRequest, GetRunResponse, Run, RunServiceService, RunState, type WatchRunRequest, WatchRunResponse } from "../src/v1.js";
import { loadProfile } from "../src/credentials.js";
import { durationOf } from "../src/errors.js";
import { pause, TimedOut, within } from "../src/waiting.js";
import { eventually, statusOf } from "./sidecar.js";

const DAY = 24 * 3600 * 1000;
const PATIENCE = 300;
const said: string[] = [];
const logger = {
  debug: () => undefined,
  info: () => undefined,
  warn: (text: string) => { said.push(text); },
  error: () => undefined,
};
let folder: string;

function openssl(...args: string[]): void {
  execFileSync("openssl", args, { cwd: folder, stdio: "pipe" });
}

/** Certificates of one authority: that of the server, and one for each client. */
function certify(name: string, names: string, days = "1"): void {
  openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", `${name}.key`);
  openssl("req", "-new", "-key", `${name}.key`, "-subj", `/CN=${name}`, "-out", `${name}.csr`);
  writeFileSync(join(folder, `${name}.ext`), `subjectAltName=${names}\n`);
  const authority = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
  openssl("x509", "-req", "-in", `${name}.csr`, ...authority, "-days", days, "-extfile", `${name}.ext`, "-out", `${name}.pem`);
}

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "anti-"));
  openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "ca.key");
  openssl("req", "-x509", "-new", "-key", "ca.key", "-subj", "/CN=test", "-days", "1", "-out", "ca.pem");
  certify("server", "DNS:orchestrator.antiphon.internal,URI:spiffe://mesh.test/ns/system/orchestrator/one");
  certify("alice", "URI:spiffe://mesh.test/ns/team-a/client/alice");
  certify("late", "URI:spiffe://mesh.test/ns/team-a/client/alice", "0");
  certify("renewed", "URI:spiffe://mesh.test/ns/team-a/client/alice");
});

afterAll(() => { rmSync(folder, { recursive: true }); });

type Answer = (call: ServerUnaryCall<GetRunRequest, GetRunResponse>, done: sendUnaryData<GetRunResponse>) => void;
type Watch = (call: ServerWritableStream<WatchRunRequest, WatchRunResponse>) => void;

type More = Partial<RunServiceServer & PayloadServiceServer & ClusterServiceServer>;

/** An orchestrator that knows the methods given, and answers no other; it ends with the test. */
async function orchestrator(getRun: Answer, watchRun: Watch = () => undefined, more: More = {}): Promise<string> {
  const server = new Server();
  const nothing = (): void => undefined;
  for (const service of [RunServiceService, PayloadServiceService, ClusterServiceService]) {
    const rest = Object.fromEntries(Object.keys(service).map((name) => [name, nothing]));
    server.addService(service, { ...rest, getRun, watchRun, ...more });
  }
  const pem = (name: string): Buffer => readFileSync(join(folder, name));
  const credentials = ServerCredentials.createSsl(
    pem("ca.pem"),
    [{ private_key: pem("server.key"), cert_chain: pem("server.pem") }],
    true,
  );
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync("127.0.0.1:0", credentials, (error, bound) => {
      if (error) reject(error);
      else resolve(bound);
    });
  });
  onTestFinished(() => { server.forceShutdown(); });
  return `127.0.0.1:${String(port)}`;
}

/** A credential folder with generations, as the commands write it. */
function credentialFolder(name: string): { path: string; turnTo: (name: string) => void } {
  const path = mkdtempSync(join(folder, "credential-"));
  const turnTo = (of: string): void => {
    const generation = join(path, of);
    mkdirSync(generation);
    cpSync(join(folder, `${of}.key`), join(generation, "key.pem"));
    cpSync(join(folder, `${of}.pem`), join(generation, "cert.pem"));
    cpSync(join(folder, "ca.pem"), join(generation, "bundle.pem"));
    symlinkSync(of, join(path, "next"));
    renameSync(join(path, "next"), join(path, "current"));
  };
  turnTo(name);
  return { path, turnTo };
}

async function connect(address: string | string[], options: { timeout?: number; patience?: number } = {}): Promise<Client> {
  const credentials = Credentials.fromFolder(credentialFolder("alice").path);
  const client = await Client.connect({ address, credentials, logger, ...options });
  onTestFinished(() => { client.close(); });
  return client;
}

const succeed: Answer = (call, done) => { done(null, GetRunResponse.fromPartial({ run: { runId: call.request.runId, state: RunState.SUCCEEDED } })); };

test("every call has a deadline and a trace", async () => {
  const seen: { left?: number; trace?: string } = {};
  const address = await orchestrator((call, done) => {
    seen.left = Number(call.getDeadline()) - Date.now();
    seen.trace = String(call.metadata.get("traceparent")[0]);
    succeed(call, done);
  });
  const client = await connect(address, { timeout: 5000 });
  expect((await client.getRun("r")).state).toBe(RunState.SUCCEEDED);
  expect(seen.left).toBeGreaterThan(0);
  expect(seen.left).toBeLessThanOrEqual(5000);
  expect(seen.trace).toMatch(/^00-[0-9a-f]{32}-[0-9a-f]{16}-01$/);
});

test("a refusal is an error with the registry's reason, remedy, code and variables, and is not repeated", async () => {
  let calls = 0;
  const address = await orchestrator((_, done) => {
    calls += 1;
    done(statusOf("CURSOR_INVALID", { cursor: "7" }), null);
  });
  const client = await connect(address);
  const error = await client.getRun("r").catch((thrown: unknown) => thrown);
  expect(error).toBeInstanceOf(StaleError);
  expect(error).toMatchObject({ reason: "CURSOR_INVALID", code: REASONS.CURSOR_INVALID.code, metadata: { cursor: "7" } });
  expect(calls).toBe(1);
});

test.each(["NOT_SERVING", "STORE_UNAVAILABLE"] as const)("who answers %s is left for the next address", async (reason) => {
  let calls = 0;
  const away = await orchestrator((_, done) => {
    calls += 1;
    done(statusOf(reason, { state: "cut off" }), null);
  });
  const client = await connect([away, await orchestrator(succeed)]);
  expect((await client.getRun("r")).state).toBe(RunState.SUCCEEDED);
  expect((await client.getRun("r")).state).toBe(RunState.SUCCEEDED);
  expect(calls).toBe(1);
});

test("a RETRY refusal is repeated after the delay the server asks for, as often as is right", async () => {
  let calls = 0;
  const delay = RetryInfo.fromPartial({ retryDelay: { seconds: 0, nanos: 1_000_000 } });
  const details = [{ typeUrl: "type.googleapis.com/google.rpc.RetryInfo", value: Buffer.from(RetryInfo.encode(delay).finish()) }];
  const address = await orchestrator((call, done) => {
    calls += 1;
    if (call.request.runId === "soon" && calls === 3) succeed(call, done);
    else done(statusOf("OVERLOADED", { queue: "q" }, details), null);
  });
  const client = await connect(address);
  expect((await client.getRun("soon")).runId).toBe("soon");
  calls = 0;
  const error = await client.getRun("never").catch((thrown: unknown) => thrown);
  expect(error).toBeInstanceOf(RetryableError);
  expect(error).toMatchObject({ reason: "OVERLOADED", retryAfter: 1 });
  expect(calls).toBe(6);
});

test("a call that is given up ends with the reason of its signal", async () => {
  const asked = new AbortController();
  const address = await orchestrator(() => { asked.abort(new Error("enough")); });
  const client = await connect(address);
  await expect(client.getRun("r", { signal: asked.signal })).rejects.toThrow("enough");
});

test("a call without an answer ends with its deadline", async () => {
  const client = await connect(await orchestrator(() => undefined));
  const error = await client.getRun("r", { timeout: 200 }).catch((thrown: unknown) => thrown);
  expect(error).toMatchObject({ reason: "DEADLINE_EXCEEDED" });
});

test("a run that does not end in the time there is for it ends the waiting, however one waits", async () => {
  const ids: string[] = [];
  const address = await orchestrator(succeed, undefined, {
    submitRun: (call, done) => {
      ids.push(call.request.requestId);
      if (!call.request.wait) done(null, { run: Run.fromPartial({ runId: "r" }) });
    },
  });
  const client = await connect(address);
  const late = { name: "RetryableError", reason: "DEADLINE_EXCEEDED", message: expect.stringContaining("run r has not ended") as string };
  await expect(client.wait("r", { timeout: 200 })).rejects.toMatchObject(late);
  await expect(client.submit("g@1", null, { wait: true, timeout: 200 })).rejects.toMatchObject({ ...late, metadata: { run_id: "r" } });
  expect([ids.length, new Set(ids).size]).toEqual([2, 1]); // the same request id is the same run
});

test("a payload that does not come in the time there is for it ends the download", async () => {
  const client = await connect(await orchestrator(succeed, undefined, { downloadPayload: () => undefined }));
  const late = { name: "RetryableError", reason: "DEADLINE_EXCEEDED", message: expect.stringContaining("has not come within 200 ms") as string };
  await expect(client.downloadPayload("0".repeat(64), { timeout: 200 })).rejects.toMatchObject(late);
});

test.each([30 * DAY, Infinity])("there may be %d ms for a run", async (timeout) => {
  const client = await connect(await orchestrator(succeed, (call) => {
    call.write(WatchRunResponse.fromPartial({ run: { runId: "r" } }));
    call.end();
  }));
  expect((await client.wait("r", { timeout })).runId).toBe("r");
});

test("more time than a timer of Node can take ends when it is over", async () => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  onTestFinished(() => { vi.useRealTimers(); });
  const ended: string[] = [];
  void pause(60 * DAY).then(() => ended.push("pause"));
  void within(new Promise(() => undefined), 60 * DAY).catch((error: unknown) => ended.push((error as Error).name));
  await vi.advanceTimersByTimeAsync(60 * DAY - 1);
  expect(ended).toEqual([]);
  await vi.advanceTimersByTimeAsync(1);
  expect(ended).toEqual(["pause", TimedOut.name]);
  expect(vi.getTimerCount()).toBe(0);
});

test.each([[1999.9999999, 2, 0], [-1999.9999999, -2, 0], [1500.0000004, 1, 500_000_000], [0.25, 0, 250_000]])(
  "%d ms are a duration that the contracts allow",
  (time, seconds, nanos) => { expect(durationOf(time)).toEqual({ seconds, nanos }); },
);

test("giving up what begins with an upload ends the upload", async () => {
  const large = "x".repeat(100_000);
  let given = new AbortController();
  const seen = { left: 0, cancelled: false };
  const address = await orchestrator(succeed, undefined, {
    uploadPayload: (call) => {
      seen.left = Number(call.getDeadline()) - Date.now();
      call.on("cancelled", () => { seen.cancelled = true; });
      given.abort(new Error("enough"));
    },
  });
  const client = await connect(address);
  for (const begin of [
    (times: CallTimes) => client.uploadPayload(Buffer.from(large), "", times),
    (times: CallTimes) => client.submit("g@1", large, times),
    (times: CallTimes) => client.submit("g@1", large, { ...times, wait: true }),
    (times: CallTimes) => client.signal("r", "go", large, times),
    (times: CallTimes) => client.resolve("r", "t", { output: large }, times),
    (times: CallTimes) => client.putEntry("key", large, times),
  ]) {
    given = new AbortController();
    Object.assign(seen, { left: 0, cancelled: false });
    await expect(begin({ signal: given.signal, timeout: 5000 })).rejects.toThrow("enough");
    expect(seen.left).toBeLessThanOrEqual(5000);
    await eventually(() => seen.cancelled, "the end of the upload");
  }
});

test("an upload has part of the time of the call that it is for", async () => {
  let left = Infinity;
  const address = await orchestrator(succeed, undefined, {
    uploadPayload: (call, done) => {
      const deadline = Number(call.getDeadline());
      call.resume();
      void eventually(() => deadline - Date.now() < 19_900, "some of the time to pass").then(() => {
        done(null, { blob: { digest: "d", size: 1 } });
      });
    },
    submitRun: (call, done) => {
      left = Number(call.getDeadline()) - Date.now();
      done(null, { run: Run.fromPartial({ runId: "r" }) });
    },
  });
  const client = await connect(address);
  expect((await client.submit("g@1", "x".repeat(100_000), { timeout: 20_000 })).runId).toBe("r");
  expect(left).toBeLessThan(19_950);
});

test("a submission that is too large for any message fails alone", async () => {
  const client = await connect(await orchestrator(succeed, undefined, { submitRuns: () => undefined }));
  await using submitter = client.submitter();
  const { answer } = await submitter.submit(Graph.fromPartial({ name: "n".repeat(4 << 20) }));
  await expect(answer).rejects.toThrow("larger than 4194304 bytes");
});

test("an empty request id is none, of which a new one is made", async () => {
  const ids: string[] = [];
  const address = await orchestrator(succeed, undefined, {
    submitRun: (call, done) => {
      ids.push(call.request.requestId);
      done(null, { run: Run.fromPartial({ runId: "r" }) });
    },
    submitRuns: (call: ServerDuplexStream<SubmitRunsRequest, SubmitRunsResponse>) => {
      call.on("data", ({ submissions }: SubmitRunsRequest) => {
        ids.push(...submissions.map(({ requestId }) => requestId));
        const results = submissions.map(({ requestId }) => ({ requestId, result: { $case: "run" as const, value: { runId: "r" } } }));
        call.write(SubmitRunsResponse.fromPartial({ results }));
      });
    },
  });
  const client = await connect(address);
  await using submitter = client.submitter();
  await client.submit("g@1", null, { requestId: "" });
  const [one, other] = [await submitter.submit("g@1", null, { requestId: "" }), await submitter.submit("g@1", null, { requestId: "" })];
  await Promise.all([one.answer, other.answer]);
  expect([new Set(ids).size, ids.includes("")]).toEqual([3, false]);
});

test("a submitter that is closed may be closed again, and says so to who submits", async () => {
  const client = await connect(await orchestrator(succeed, undefined, { submitRuns: () => undefined }));
  const submitter = client.submitter();
  await submitter.close();
  await submitter.close();
  await expect(submitter.submit("g@1")).rejects.toThrow("the submitter is closed; make another");
});

test("a submission beside the end of its submitter is answered, or refused", async () => {
  const address = await orchestrator(succeed, undefined, {
    submitRuns: (call: ServerDuplexStream<SubmitRunsRequest, SubmitRunsResponse>) => {
      call.on("data", ({ submissions }: SubmitRunsRequest) => {
        const results = submissions.map(({ requestId }) => ({ requestId, result: { $case: "run" as const, value: { runId: "r" } } }));
        call.write(SubmitRunsResponse.fromPartial({ results }));
      });
    },
  });
  const client = await connect(address);
  const outcomes = new Set<string>();
  for (let turns = 0; turns < 40; turns += 1) {
    const submitter = client.submitter();
    const outcome = submitter.submit("g@1").then(async ({ answer }) => (await answer).runId).catch((error: unknown) => String(error));
    for (let turn = 0; turn < turns; turn += 1) await Promise.resolve();
    await submitter.close();
    outcomes.add(await within(outcome, 2000));
  }
  expect(outcomes).toEqual(new Set(["r", "SetupError: the submitter is closed; make another with client.submitter()"]));
});

test("a payload with more labels than travel is refused before it is sent", async () => {
  const client = await connect(await orchestrator(succeed, undefined, { submitRuns: () => undefined }));
  const labels = Array.from({ length: 64 }, () => ({ key: "pii", value: "x".repeat(80_000), assertedBy: "" }));
  const labelled = new Payload({ ...Payload.inline(Buffer.from("1")).message, labels });
  const submitter = client.submitter();
  await expect(submitter.submit("g@1", labelled)).rejects.toThrow("bytes of labels and other texts, larger than 262144");
  await expect(client.submit("g@1", labelled)).rejects.toBeInstanceOf(TypeError);
  await expect(client.putEntry("key", labelled)).rejects.toBeInstanceOf(TypeError);
  await submitter.close();
});

test("a watch goes on where it broke, without gap or repeat", async () => {
  const cursors: number[] = [];
  const address = await orchestrator(succeed, (call) => {
    const { cursor } = call.request;
    cursors.push(cursor);
    call.write(WatchRunResponse.fromPartial({ events: [{ eventSeq: cursor + 1 }, { eventSeq: cursor + 2 }] }));
    if (cursor < 4) call.emit("error", statusOf("NOT_SERVING"));
    else call.end();
  });
  const client = await connect(address);
  const seen: number[] = [];
  for await (const event of client.watch("r")) seen.push(event.eventSeq);
  expect(seen).toEqual([1, 2, 3, 4, 5, 6]);
  expect(cursors).toEqual([0, 2, 4]);
});

/** Says nothing for longer than the patience of the test, three times, and lets `then` answer. */
function quietly<Call extends { emit(name: "error", error: unknown): boolean }>(then: (call: Call) => void): (call: Call) => void {
  let streams = 0;
  return (call) => {
    streams += 1;
    if (streams > 3) then(call);
    else void pause(2 * PATIENCE).then(() => { call.emit("error", statusOf("NOT_SERVING")); });
  };
}

test("a stream that had nothing to say for longer than the patience is dialled again where it breaks, each time", async () => {
  const run = { runId: "r", state: RunState.SUCCEEDED };
  let calls = 0;
  const address = await orchestrator(
    succeed,
    quietly((call) => {
      call.write(WatchRunResponse.fromPartial({ run }));
      call.end();
    }),
    {
      submitRun: (_, done) => {
        calls += 1;
        if (calls > 3) done(null, { run: Run.fromPartial(run) });
        else void pause(2 * PATIENCE).then(() => { done(statusOf("NOT_SERVING"), null); });
      },
      submitRuns: quietly((call: ServerDuplexStream<SubmitRunsRequest, SubmitRunsResponse>) => {
        call.on("data", ({ submissions }: SubmitRunsRequest) => {
          const results = submissions.map(({ requestId }) => ({ requestId, result: { $case: "run" as const, value: run } }));
          call.write(SubmitRunsResponse.fromPartial({ results }));
        });
      }),
    },
  );
  const client = await connect(address, { patience: PATIENCE });
  await using submitter = client.submitter();
  const ended = [client.wait("r"), client.submit("g@1", null, { wait: true }), (await submitter.submit("g@1")).answer];
  expect((await Promise.all(ended)).map(({ runId }) => runId)).toEqual(["r", "r", "r"]);
});

test("a stream that is refused for longer than the patience ends with its error", async () => {
  let dials = 0;
  const address = await orchestrator(succeed, (call) => {
    dials += 1;
    call.emit("error", statusOf("NOT_SERVING"));
  });
  const client = await connect(address, { patience: PATIENCE });
  await expect(client.wait("r")).rejects.toMatchObject({ reason: "NOT_SERVING" });
  expect(dials).toBeGreaterThan(1);
});

test("leaving a watch ends its stream", async () => {
  let ended = false;
  const address = await orchestrator(succeed, (call) => {
    call.on("cancelled", () => { ended = true; });
    call.write(WatchRunResponse.fromPartial({ events: [{ eventSeq: 1 }] }));
  });
  const client = await connect(address);
  for await (const event of client.watch("r")) {
    expect(event.eventSeq).toBe(1);
    break;
  }
  await eventually(() => ended, "the end of the stream");
});

test("where nobody answers, the next address is tried", async () => {
  const client = await connect(["127.0.0.1:1", await orchestrator(succeed)]);
  expect((await client.getRun("r")).runId).toBe("r");
});

test("a client learns of the other replicas from the one in use, and turns to them when that one goes", async () => {
  vi.useFakeTimers({ toFake: ["setInterval", "clearInterval"] });
  onTestFinished(() => { vi.useRealTimers(); });
  const other = await orchestrator(succeed);
  const replicas = [{ address: "127.0.0.1:1", leaving: true }, { address: other }].map((one) => ReplicaStatus.fromPartial(one));
  let asked = 0;
  const goes: Answer = (_, done) => { done({ code: status.UNAVAILABLE }, null); };
  const address = await orchestrator(goes, undefined, {
    getCluster: (_, done) => {
      asked += 1;
      if (asked === 1) done(statusOf("NOT_GRANTED"), null);
      else done(null, GetClusterResponse.fromPartial({ replicas }));
    },
  });
  const client = await connect(address);
  for (const looks of [1, 2]) {
    await expect(client.getRun("r", { timeout: 500 })).rejects.toBeInstanceOf(RetryableError);
    await vi.advanceTimersByTimeAsync(10_000);
    await eventually(() => asked === looks, "the question");
  }
  expect((await client.getRun("r")).runId).toBe("r");
});

test("a new certificate takes over without a lost call", async () => {
  const serials = new Set<string>();
  const address = await orchestrator((call, done) => {
    const { sslPeerCertificate } = call.getAuthContext();
    serials.add(String(sslPeerCertificate?.serialNumber));
    succeed(call, done);
  });
  const files = credentialFolder("alice");
  const client = await Client.connect({ address, credentials: Credentials.fromFolder(files.path), logger });
  onTestFinished(() => { client.close(); });
  await client.getRun("r");
  files.turnTo("renewed");
  const { connection } = client as unknown as { connection: { refresh(): Promise<boolean> } };
  const [changed, ...runs] = await Promise.all([connection.refresh(), ...Array.from({ length: 20 }, () => client.getRun("r"))]);
  expect([changed, runs.length]).toEqual([true, 20]);
  await client.getRun("r");
  expect(serials.size).toBe(2);
  expect(await connection.refresh()).toBe(false);
});

test("a call that outlives its certificate goes on with the one that has replaced it", async () => {
  let old: (() => void) | undefined;
  const address = await orchestrator((call, done) => {
    if (old === undefined) old = () => { done(statusOf("CERTIFICATE_EXPIRED", {}), null); };
    else succeed(call, done);
  });
  const files = credentialFolder("alice");
  const client = await Client.connect({ address, credentials: Credentials.fromFolder(files.path), logger });
  onTestFinished(() => { client.close(); });
  const answer = client.getRun("r");
  await eventually(() => old !== undefined, "the call");
  files.turnTo("renewed");
  const { connection } = client as unknown as { connection: { refresh(): Promise<boolean> } };
  expect(await connection.refresh()).toBe(true);
  old?.();
  expect((await answer).runId).toBe("r");
});

test("a certificate that cannot be used leaves the one in use", async () => {
  const files = credentialFolder("alice");
  const credentials = Credentials.fromFolder(files.path);
  const client = await Client.connect({ address: await orchestrator(succeed), credentials, logger });
  onTestFinished(() => { client.close(); });
  const { connection } = client as unknown as { connection: { refresh(): Promise<boolean> } };
  for (const name of ["key.pem", "cert.pem", "bundle.pem"]) {
    const path = join(files.path, "alice", name);
    const whole = readFileSync(path);
    for (const spoiled of ["", "no PEM", ...(name === "bundle.pem" ? [] : [whole.subarray(0, 60)])]) {
      writeFileSync(path, spoiled);
      expect(await connection.refresh()).toBe(false);
      expect(said.at(-1)).toMatch(/the certificate in use is kept: .*the certificate cannot be used/);
      expect((await client.getRun("r")).runId).toBe("r");
      await expect(Client.connect({ address: "127.0.0.1:1", credentials, logger })).rejects.toBeInstanceOf(SetupError);
    }
    writeFileSync(path, whole);
  }
});

test("a profile is found as the command finds it, and its absence says what to do", async () => {
  const home = mkdtempSync(join(folder, "home-"));
  const profile = join(home, "profiles/web");
  mkdirSync(profile, { recursive: true });
  writeFileSync(join(profile, "profile.toml"), 'addresses = ["127.0.0.1:7443"]\n');
  const environ = { ANTIPHON_HOME: home, ANTIPHON_PROFILE: "web" };
  expect((await loadProfile(undefined, environ)).addresses).toEqual(["127.0.0.1:7443"]);
  await expect(loadProfile("other", environ)).rejects.toThrow("antiphon dev");
  await expect(loadProfile("Not A Name", environ)).rejects.toBeInstanceOf(SetupError);
  writeFileSync(join(profile, "profile.toml"), "addresses = []\n");
  await expect(loadProfile(undefined, environ)).rejects.toThrow("must be a list of host:port");
  await expect(Credentials.fromFolder(join(profile, "credential")).read()).rejects.toThrow("there is no certificate");
});

test("a call and a watch with a certificate that has expired end with that, and not after the patience", async () => {
  const address = await orchestrator(succeed);
  const credentials = credentialFolder("late");
  const client = await Client.connect({ address, credentials: Credentials.fromFolder(credentials.path), logger });
  onTestFinished(() => { client.close(); });
  const expired = { reason: "CERTIFICATE_EXPIRED", message: expect.stringMatching(/expired at 20\d\d-.*Z; join again/) as string };
  await expect(client.getRun("r")).rejects.toMatchObject(expired);
  await expect(client.watch("r").next()).rejects.toMatchObject(expired);
  credentials.turnTo("renewed");
  expect((await client.getRun("r")).runId).toBe("r");
});

test.each([
  "https://mesh.example:7443", "grpc://a:1", "dns:///a:1", "a", "a:", "a:0", "a:65536", "::1:7443", ":7443", "a:1,b:1", "",
])("%j, which is no address of an orchestrator, is refused at once", async (address) => {
  await expect(connect(["a:1", address])).rejects.toThrow(/write host:port, without a scheme, such as .* or \[::1\]:7443$/);
  await connect(["a-b.example:7443", "127.0.0.1:1", "[::1]:7443", "[fe80::1%eth0]:65535", "unix:/run/a"]);
});

test("a client that is closed says so", async () => {
  const client = await connect(await orchestrator(succeed));
  client.close();
  await expect(client.getRun("r")).rejects.toThrow("closed");
});

test("every reason of the registry is known with its remedy", () => {
  for (const [reason, { code }] of Object.entries(REASONS)) {
    const error = new AntiphonError("text", { reason });
    expect([error.reason, error.code]).toEqual([reason, code]);
  }
});

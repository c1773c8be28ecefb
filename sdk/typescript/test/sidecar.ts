/**
 * A sidecar double: serves AgentService on a Unix socket over real gRPC, and lets a test play the sidecar by hand.
 *
 * Each stream an agent opens becomes a `Line`: what the agent says is gathered there, what the test wants said is sent.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { Metadata, Server, ServerCredentials, type ServerDuplexStream } from "@grpc/grpc-js";
import { onTestFinished } from "vitest";

import { ErrorInfo } from "../src/gen/google/rpc/error_details.js";
import { Status } from "../src/gen/google/rpc/status.js";
import { REASONS } from "../src/gen/reasons.js";
import {
  type AgentHello,
  AgentServiceService,
  Assignment,
  type CallRequest,
  type ContextRequest,
  type Failure,
  type ProgressUpdate,
  type Result,
  type WorkRequest,
  WorkResponse,
} from "../src/v1.js";

const WAIT = 20_000;

/** Resolves once `look` gives something. Rejects after a while. */
export async function eventually<Value>(look: () => Value | undefined | false, what: string): Promise<Value> {
  const end = Date.now() + WAIT;
  for (;;) {
    const found = look();
    if (found !== undefined && found !== false) return found;
    if (Date.now() > end) throw new Error(`waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/** One stream, from the sidecar's side. */
export class Line {
  readonly results: Result[] = [];
  readonly progress: ProgressUpdate[] = [];
  readonly calls: CallRequest[] = [];
  readonly asks: ContextRequest[] = [];
  readonly batches: number[] = [];
  drained = false;
  closed = false;
  ended = false;

  constructor(
    readonly stream: ServerDuplexStream<WorkRequest, WorkResponse>,
    readonly hello: AgentHello,
  ) {
    stream.on("data", (request: WorkRequest) => {
      this.results.push(...request.results);
      if (request.results.length > 0) this.batches.push(request.results.length);
      this.progress.push(...request.progress);
      this.calls.push(...request.calls);
      this.asks.push(...request.contextRequests);
      this.drained ||= request.drain;
    });
    stream.on("end", () => {
      this.ended = true;
      stream.end();
    });
    stream.on("cancelled", () => { this.closed = true; });
    stream.on("close", () => { this.closed = true; });
  }

  send(response: Parameters<typeof WorkResponse.fromPartial>[0]): void {
    this.stream.write(WorkResponse.fromPartial(response));
  }

  assign(...assignments: Assignment[]): void {
    this.send({ assignments });
  }

  cancel(attemptId: string, reason = "cancelled"): void {
    this.send({ cancels: [{ attemptId, reason }] });
  }

  /** The outcome of an attempt; there must be one only. */
  async result(attemptId: string): Promise<Result> {
    const mine = (): Result[] => this.results.filter((one) => one.attemptId === attemptId);
    await eventually(() => mine().length > 0, `the outcome of ${attemptId}`);
    const [result, ...more] = mine();
    if (result === undefined || more.length > 0) throw new Error(`${attemptId} has ${String(more.length + 1)} outcomes`);
    return result;
  }

  /** The JSON output of an attempt. */
  async output(attemptId: string): Promise<unknown> {
    const { outcome } = await this.result(attemptId);
    if (outcome?.$case !== "output") throw new Error(`${attemptId} failed: ${JSON.stringify(outcome)}`);
    const { content } = outcome.value;
    if (content?.$case !== "inline") throw new Error(`the output of ${attemptId} is not inline`);
    return JSON.parse(content.value.toString());
  }

  /** The failure of an attempt. */
  async failure(attemptId: string): Promise<Failure> {
    const { outcome } = await this.result(attemptId);
    if (outcome?.$case !== "failure") throw new Error(`${attemptId} did not fail`);
    return outcome.value;
  }

  /** The next call of the agent. */
  async call(): Promise<CallRequest> {
    return await eventually(() => this.calls.shift(), "a call");
  }

  /** The next request to shared context. */
  async ask(): Promise<ContextRequest> {
    return await eventually(() => this.asks.shift(), "a request to shared context");
  }
}

/** The service at a socket of its own; nothing of it outlives the test. */
export class Sidecar {
  readonly path: string;
  readonly #folder = mkdtempSync(join(tmpdir(), "anti-"));
  readonly #lines: Line[] = [];
  #server: Server | undefined;
  #taken = 0;
  /** The reason with which hello is answered, if it is to be refused. */
  refusal: keyof typeof REASONS | undefined;
  refused = 0;
  inlineLimit = 65536;

  constructor() {
    this.path = join(this.#folder, "a.sock");
    onTestFinished(() => {
      this.stop();
      rmSync(this.#folder, { recursive: true });
    });
  }

  static async started(): Promise<Sidecar> {
    const sidecar = new Sidecar();
    await sidecar.start();
    return sidecar;
  }

  async start(): Promise<void> {
    const server = new Server();
    server.addService(AgentServiceService, {
      work: (stream: ServerDuplexStream<WorkRequest, WorkResponse>) => { this.#work(stream); },
      reportProgress: () => undefined,
      call: () => undefined,
    });
    this.#server = server;
    await new Promise<void>((resolve, reject) => {
      server.bindAsync(`unix:${this.path}`, ServerCredentials.createInsecure(), (error) => {
        if (error) reject(error);
        else resolve();
      });
    });
  }

  /** As when the sidecar is killed: every stream breaks. */
  stop(): void {
    this.#server?.forceShutdown();
    this.#server = undefined;
    rmSync(this.path, { force: true });
  }

  /** The next stream. */
  async line(): Promise<Line> {
    const line = await eventually(() => this.#lines[this.#taken], "a stream");
    this.#taken += 1;
    return line;
  }

  #work(stream: ServerDuplexStream<WorkRequest, WorkResponse>): void {
    stream.on("error", () => undefined); // the agent went away, as some tests want it to
    stream.once("data", (first: WorkRequest) => {
      if (first.hello === undefined) throw new Error("the first message is no hello");
      if (this.refusal !== undefined) {
        this.refused += 1;
        stream.emit("error", statusOf(this.refusal));
        return;
      }
      const agent = first.hello.description?.name ?? "";
      stream.write(WorkResponse.fromPartial({ welcome: { agent, namespace: "team-a", inlineLimit: this.inlineLimit } }));
      this.#lines.push(new Line(stream, first.hello));
    });
  }
}

/** The status a server of ours answers for a reason. */
export function statusOf(
  reason: keyof typeof REASONS,
  metadata: Record<string, string> = {},
  more: Status["details"] = [],
): { code: number; details: string; metadata: Metadata } {
  const { code } = REASONS[reason];
  const info = ErrorInfo.fromPartial({ reason, domain: "antiphon.v1", metadata });
  const details = [
    { typeUrl: "type.googleapis.com/google.rpc.ErrorInfo", value: Buffer.from(ErrorInfo.encode(info).finish()) },
    ...more,
  ];
  const trailers = new Metadata();
  const made = Status.fromPartial({ code, message: `refused: ${reason}`, details });
  trailers.set("grpc-status-details-bin", Buffer.from(Status.encode(made).finish()));
  return { code, details: made.message, metadata: trailers };
}

/** An assignment of `capability` (name@version) with JSON input. */
export function assignment(attemptId: string, capability: string, value: unknown = null, seconds?: number): Assignment {
  const [name = "", version = ""] = capability.split("@");
  return Assignment.fromPartial({
    attemptId,
    attemptToken: Buffer.from(`token of ${attemptId}`),
    idempotencyKey: attemptId.slice(0, attemptId.lastIndexOf("/")),
    capability: name,
    version,
    namespace: "team-a",
    principal: "spiffe://mesh.test/ns/team-a/client/alice",
    traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    input: { content: { $case: "inline", value: Buffer.from(JSON.stringify(value)) } },
    number: Number(attemptId.slice(attemptId.lastIndexOf("/") + 1)),
    remainingTimeout: seconds === undefined ? undefined : { seconds, nanos: 0 },
  });
}

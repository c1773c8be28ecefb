/** One submission as a message, from what a user says of it. */
import { requestIdOf } from "./calls.js";
import { partition } from "./entries.js";
import { durationOf } from "./errors.js";
import { type Graph as GraphMessage } from "./gen/antiphon/v1/graph.js";
import { SubmitRunRequest } from "./gen/antiphon/v1/run_service.js";
import { Graph } from "./graph.js";
import { encode, INLINE_LIMIT, inlineOf, Payload, payloadOf } from "./payload.js";
import { traceparent } from "./trace.js";

/** A graph of one's own, or the name of a registered one: "NAME" or "NAME@VERSION". */
export type GraphSource = string | Graph | GraphMessage;

/** What a submission may say besides its graph and its input. */
export interface SubmitOptions {
  /** Makes it repeatable: the same id with the same content is the same run. A new one by default. */
  requestId?: string;
  /** Longest duration of the run in milliseconds; the smaller of this and the graph's own holds. */
  deadline?: number;
  /** For search. */
  labels?: Readonly<Record<string, string>>;
  /** Added to the priority of each task; 0 to 9. */
  priority?: number;
  /** True: the answer is the run as it ended. False (default): as it was committed. */
  wait?: boolean;
  /** W3C trace context; by default that of the task this code runs for, or a new one. */
  traceparent?: string;
}

/** The message. Input above the inline limit is uploaded. Rejects with a `TypeError` for what is not JSON. */
export async function submission(
  upload: (data: Buffer) => Promise<Payload>,
  graph: GraphSource,
  input: unknown,
  options: SubmitOptions,
): Promise<SubmitRunRequest> {
  const [name, version] = typeof graph === "string" ? partition(graph, "@") : ["", ""];
  return SubmitRunRequest.fromPartial({
    requestId: requestIdOf(options.requestId),
    source:
      typeof graph === "string"
        ? { $case: "registered", value: { name, version } }
        : { $case: "inline", value: graphOf(graph) },
    input: await inputOf(upload, input),
    labels: { ...options.labels },
    deadline: options.deadline === undefined ? undefined : durationOf(options.deadline),
    priority: options.priority ?? 0,
    wait: options.wait ?? false,
    traceparent: options.traceparent ?? traceparent(),
  });
}

/** A graph as a message. */
export function graphOf(graph: Graph | GraphMessage): GraphMessage {
  return graph instanceof Graph ? graph.message() : graph;
}

/** What goes in with a run, a signal or an entry; undefined for null. A large one is uploaded. Rejects with a `TypeError` for what is not JSON. */
export async function inputOf(
  upload: (data: Buffer) => Promise<Payload>,
  input: unknown,
): Promise<Payload["message"] | undefined> {
  if (input === undefined || input === null) return undefined;
  if (input instanceof Payload) return payloadOf(input);
  const data = encode(input);
  return data.length > INLINE_LIMIT ? (await upload(data)).message : inlineOf(data);
}

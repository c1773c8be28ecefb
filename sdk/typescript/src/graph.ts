/**
 * Graphs written in TypeScript.
 *
 *     const graph = new Graph("review", { version: "1" });
 *     const found = graph.task("list", "inventory.list@1", { input: { folder: ref("input.folder") } });
 *     graph.task("classify", "license.classify@1", { forEach: found.output, input: { package: item } });
 *
 * What makes sense (CEL, references, cycles, joins) is for the orchestrator's admission to judge, with every mistake at
 * once.
 */
import { durationOf } from "./errors.js";
import { type Kind } from "./failures.js";
import { FailureKind } from "./gen/antiphon/v1/failure.js";
import {
  Compensate as CompensateMessage,
  Distinct,
  Graph as GraphMessage,
  GraphTask,
  Join,
  OnFailure,
  type Quorum as QuorumMessage,
  RetryRule,
  type Wait,
} from "./gen/antiphon/v1/graph.js";
import { encode } from "./payload.js";
import { type JsonSchema } from "./schema.js";

/** A CEL expression to put into an input: alone it keeps the type of its result, within a text it becomes text. */
export class Ref {
  constructor(readonly expression: string) {}

  toString(): string {
    return `\${${this.expression}}`;
  }

  /** For JSON.stringify: an expression in an input. */
  toJSON(): string {
    return this.toString();
  }
}

/**
 * What a CEL expression gives when the task is ready; it may name `input`, `tasks.ID.output`, `item` and `index`.
 *
 * In an input: `{ text: ref("tasks.fetch.output.text") }`, or within a text: `Dear ${ref("input.name")}`.
 */
export function ref(expression: string): Ref {
  return new Ref(expression);
}

/** The item a member of a forEach works on. */
export const item = new Ref("item");
/** Its place in the list, counted from 0. */
export const index = new Ref("index");

/** A task of a graph, to refer to. */
export class TaskRef {
  constructor(readonly id: string) {}

  /** Its output. */
  get output(): Ref {
    return new Ref(`tasks.${this.id}.output`);
  }

  /** For JSON.stringify: its output in an input. */
  toJSON(): string {
    return this.output.toString();
  }
}

/**
 * How often and how soon failures of some kinds are tried again; the first rule that names the kind applies. The wait before
 * attempt n+1 is half to all of min(maxBackoff, backoff * multiplier^(n-1)), at random. Times are milliseconds.
 */
export interface Retry {
  on: readonly Kind[];
  /** In all, the first included; 3 by default. */
  maxAttempts?: number;
  backoff?: number;
  maxBackoff?: number;
  multiplier?: number;
}

/**
 * Makes a task a loop: it is done again until `condition` is true, and fails when it is not after `maxIterations`. The condition is
 * CEL over `output` (of the iteration that has ended) and `iteration` (its number, from 1); the input of the task may use
 * `iteration` and `previous`, the output of the iteration before, null in the first.
 */
export interface Until {
  condition: string | Ref;
  maxIterations: number;
}

/** How what a task did is undone, when it has succeeded and its run fails or is cancelled. */
export interface Compensate {
  capability: string;
  /** JSON with `ref(…)` in it; by default the output of the task. */
  input?: unknown;
  retry?: readonly Retry[];
  /** Milliseconds of one attempt. */
  timeout?: number;
}

/** Has a task done by `of` agents, of which `agree` must answer the same; the first of these answers is the task's. */
export interface Quorum {
  agree: number;
  of: number;
  /** CEL over `output` (an answer) and `other` (an earlier one), for answers that agree without being equal. */
  condition?: string | Ref;
  /** Whether each is another agent (the default), or may be another instance of the same. */
  distinct?: "agent" | "instance";
}

/** Asks a second agent when the first takes longer than `delay` milliseconds; the first outcome is used, the other cancelled. */
export interface Hedge {
  delay: number;
  /** Instead of the delay, once enough is known: this quantile of what the capability took, such as 0.95. */
  quantile?: number;
  /** Most second attempts, as a share of the tasks; 0.1 by default. */
  share?: number;
}

/** What a wait is for: so many milliseconds, a moment in CEL (a timestamp or a duration), or a signal, whose payload is the output. */
export type WaitCause = { time: number } | { moment: string | Ref } | { signal: string };

/** What a task that only waits may say besides what it waits for. */
export type WaitOptions = Pick<TaskOptions, "needs" | "when" | "join" | "deadline" | "onFailure" | "description">;

/** What a task that runs a registered graph may say besides which. */
export type SubRunOptions = Pick<
  TaskOptions,
  | "input"
  | "needs"
  | "when"
  | "forEach"
  | "until"
  | "join"
  | "deadline"
  | "priority"
  | "onFailure"
  | "compensate"
  | "description"
>;

/** What a graph may say of itself. */
export interface GraphOptions {
  /** Needed to register it. */
  version?: string;
  description?: string;
  /** What a run's input must be. */
  inputSchema?: JsonSchema;
  /** What a run answers; by default an object with the output of each task that nothing depends on, by task id. */
  output?: unknown;
  /** Longest duration of a run in milliseconds. */
  deadline?: number;
  labels?: Readonly<Record<string, string>>;
}

/** What a task may say besides its id and capability. */
export interface TaskOptions {
  /** JSON with `ref(…)` in it. */
  input?: unknown;
  /** Tasks that come before, besides those that expressions refer to. */
  needs?: readonly (string | TaskRef)[];
  /** A condition. */
  when?: string | Ref;
  /** A list whose items are worked on each by a member. */
  forEach?: string | Ref;
  /** How many of its needs must be done: all (the default), any, or a number. */
  join?: "all" | "any" | number;
  retry?: readonly Retry[];
  /** Milliseconds of one attempt. */
  timeout?: number;
  /** Milliseconds from ready to the end. */
  deadline?: number;
  /** Milliseconds of waiting for an agent. */
  scheduleTimeout?: number;
  priority?: number;
  onFailure?: "fail" | "skip" | "continue" | "escalate";
  /** Makes it a loop. */
  until?: Until;
  compensate?: Compensate;
  /** A doubt whether it was done escalates, and it is never offered again. */
  atMostOnce?: boolean;
  quorum?: Quorum;
  /** Only agents that declare the capability idempotent, or pure, get the task. */
  hedge?: Hedge;
  /** Milliseconds for which a result for the same input is used again. Only agents that declare the capability pure get the task. */
  cache?: number;
  agentLabels?: Readonly<Record<string, string>>;
  maxCost?: number;
  description?: string;
}

/** A graph under construction. */
export class Graph {
  readonly #message: GraphMessage;

  constructor(name: string, options: GraphOptions = {}) {
    this.#message = GraphMessage.fromPartial({
      name,
      version: options.version ?? "",
      description: options.description ?? "",
      inputSchema: options.inputSchema === undefined ? "" : JSON.stringify(options.inputSchema),
      output: template(options.output),
      deadline: duration(options.deadline),
      labels: { ...options.labels },
    });
  }

  /** Add a task, and return what other tasks refer to it by. Throws a `TypeError` for an input that is not JSON. */
  task(id: string, capability: string, options: TaskOptions = {}): TaskRef {
    const { agentLabels, maxCost } = options;
    this.#message.tasks.push(
      GraphTask.fromPartial({
        ...common(id, options),
        ...worked(options),
        capability,
        retry: (options.retry ?? []).map(ruleOf),
        timeout: duration(options.timeout),
        scheduleTimeout: duration(options.scheduleTimeout),
        atMostOnce: options.atMostOnce ?? false,
        quorum: options.quorum === undefined ? undefined : quorumOf(options.quorum),
        hedge: options.hedge === undefined ? undefined : { ...options.hedge, delay: durationOf(options.hedge.delay) },
        cache: options.cache === undefined ? undefined : { ttl: durationOf(options.cache) },
        constraints:
          agentLabels === undefined && maxCost === undefined
            ? undefined
            : { agentLabels: { ...agentLabels }, maxCost: maxCost ?? 0 },
      }),
    );
    return new TaskRef(id);
  }

  /**
   * Add a task that runs a registered graph, "review@1.2", or "review" for its newest version when the task begins. The output
   * of that run is the task's, and its failure the task's. Throws as `task`.
   */
  subRun(id: string, graph: string, options: SubRunOptions = {}): TaskRef {
    this.#message.tasks.push(GraphTask.fromPartial({ ...common(id, options), ...worked(options), graph }));
    return new TaskRef(id);
  }

  /**
   * Add a task that only waits. When its `deadline` passes before, it fails with TIMEOUT, and `onFailure` says what that
   * means.
   */
  wait(id: string, cause: WaitCause, options: WaitOptions = {}): TaskRef {
    this.#message.tasks.push(GraphTask.fromPartial({ ...common(id, options), wait: { cause: causeOf(cause) } }));
    return new TaskRef(id);
  }

  /** The graph as a message of its own. */
  message(): GraphMessage {
    return GraphMessage.fromPartial(this.#message);
  }
}

/** What tasks of every kind say. */
function common(id: string, options: WaitOptions): Partial<GraphTask> {
  return {
    id,
    description: options.description ?? "",
    needs: needsOf(options.needs),
    when: expression(options.when),
    join: joinOf(options.join),
    deadline: duration(options.deadline),
    onFailure: onFailureOf(options.onFailure),
  };
}

/** What tasks say that do something. */
function worked(options: SubRunOptions): Partial<GraphTask> {
  const { until, compensate } = options;
  return {
    forEach: expression(options.forEach),
    input: template(options.input),
    priority: options.priority ?? 0,
    until: until === undefined ? undefined : { condition: expression(until.condition), maxIterations: until.maxIterations },
    compensate: compensate === undefined ? undefined : compensateOf(compensate),
  };
}

const ON_FAILURE = {
  fail: OnFailure.FAIL,
  skip: OnFailure.SKIP,
  continue: OnFailure.CONTINUE,
  escalate: OnFailure.ESCALATE,
} as const;

const DISTINCT = { agent: Distinct.AGENT, instance: Distinct.INSTANCE } as const;

function onFailureOf(name: TaskOptions["onFailure"]): OnFailure {
  return name === undefined ? OnFailure.UNSPECIFIED : ON_FAILURE[name];
}

function needsOf(needs: TaskOptions["needs"] = []): string[] {
  return needs.map((need) => (need instanceof TaskRef ? need.id : need));
}

function causeOf(cause: WaitCause): Wait["cause"] {
  if ("time" in cause) return { $case: "time", value: durationOf(cause.time) };
  if ("moment" in cause) return { $case: "moment", value: expression(cause.moment) };
  return { $case: "signal", value: cause.signal };
}

function compensateOf(undo: Compensate): CompensateMessage {
  return CompensateMessage.fromPartial({
    capability: undo.capability,
    input: template(undo.input),
    retry: (undo.retry ?? []).map(ruleOf),
    timeout: duration(undo.timeout),
  });
}

function quorumOf({ agree, of, condition, distinct = "agent" }: Quorum): QuorumMessage {
  return { agree, of, condition: expression(condition), distinct: DISTINCT[distinct] };
}

function joinOf(join: TaskOptions["join"]): Join | undefined {
  if (join === undefined) return undefined;
  if (typeof join === "number") return Join.fromPartial({ rule: { $case: "atLeast", value: join } });
  return Join.fromPartial({ rule: { $case: join, value: {} } });
}

function ruleOf(retry: Retry): RetryRule {
  return RetryRule.fromPartial({
    kinds: retry.on.map((kind) => FailureKind[kind]),
    maxAttempts: retry.maxAttempts ?? 3,
    initialBackoff: duration(retry.backoff),
    maxBackoff: duration(retry.maxBackoff),
    multiplier: retry.multiplier ?? 0,
  });
}

/** JSON text whose strings may hold `${CEL}`; empty for nothing. */
function template(value: unknown): string {
  return value === undefined || value === null ? "" : encode(value).toString();
}

/** The CEL in a text that is CEL or one whole `${CEL}`. */
function expression(value: string | Ref = ""): string {
  if (value instanceof Ref) return value.expression;
  const text = value.trim();
  const whole = text.startsWith("${") && text.endsWith("}") && !text.slice(2).includes("${");
  return whole ? text.slice(2, -1).trim() : value;
}

function duration(time: number | undefined): ReturnType<typeof durationOf> | undefined {
  return time === undefined ? undefined : durationOf(time);
}

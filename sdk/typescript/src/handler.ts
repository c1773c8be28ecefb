/**
 * A user's function as the worker sees it: what to announce, how to make its argument, what to do with its result.
 *
 * Everything that can be wrong with a capability is found when it is declared, before any task arrives.
 */
import { durationOf } from "./errors.js";
import { invalidInput, invalidOutput } from "./failures.js";
import { type Result } from "./gen/antiphon/v1/agent_service.js";
import { Capability, Effect } from "./gen/antiphon/v1/capability.js";
import { type Payload as PayloadMessage } from "./gen/antiphon/v1/payload.js";
import { Payload, travelling, valueOf } from "./payload.js";
import { type Check, checkOf, type FromSchema, type JsonSchema, type Mismatch } from "./schema.js";
import { Subgraph, subgraphOf } from "./subgraph.js";
import { type Task } from "./task.js";

const CAPABILITY = /^([a-z][a-z0-9_-]{0,62}(?:\.[a-z0-9_-]{1,63}){0,7})@([0-9]{1,6}(?:\.[0-9]{1,6}){0,2})$/;
const DESCRIPTION = 2048;
const SCHEMA = 32768;
const EFFECTS = { pure: Effect.PURE, read: Effect.READ, write: Effect.WRITE, egress: Effect.EGRESS } as const;

/** What a capability says of itself. */
export interface CapabilityOptions<Input, Output> {
  /** JSON Schema of its input, which gives the handler's argument its type; `Payload` for the envelope itself. */
  input?: Input;
  /** JSON Schema of its output. */
  output?: Output;
  /** For people and planners. */
  description?: string;
  /** What it may do to the world; undeclared is judged as egress, the strictest. */
  effect?: keyof typeof EFFECTS;
  /** Repeating with the same idempotency key has one effect. */
  idempotent?: boolean;
  /** Label keys it may see. */
  clearance?: readonly string[];
  /** Of one call, in the namespace's own unit. */
  cost?: number;
  /** Milliseconds that it usually takes. */
  expectedLatency?: number;
}

/** The argument of a handler. */
export type InputOf<Input> = Input extends typeof Payload
  ? Payload
  : Input extends JsonSchema
    ? FromSchema<Input>
    : // Nothing is declared: the handler says what it takes it for, as with JSON.parse.
      // eslint-disable-next-line @typescript-eslint/no-explicit-any
      any;

/** What a handler returns: a value, or a graph that is to give it. */
export type OutputOf<Output> = Output extends JsonSchema ? FromSchema<Output> | Payload | Subgraph : unknown;

/** What a result says, besides whose it is. */
export type Outcome = NonNullable<Result["outcome"]>;

/** The function behind a capability. */
export type HandlerFunction<Input, Output> = (
  input: InputOf<Input>,
  task: Task,
) => OutputOf<Output> | Promise<OutputOf<Output>>;

/** One capability and the function behind it. */
export interface Handler {
  readonly capability: Capability;
  /** Name and version. */
  readonly key: string;
  /** Call the function. Rejects with what it throws, or with an INVALID_INPUT failure. */
  call(task: Task): Promise<unknown>;
  /** Of a batch: begin what is gathered, for nothing more will come. */
  readonly flush?: () => void;
  /** What to answer; `limit` is the largest inline payload in bytes. Throws an INVALID_OUTPUT failure. */
  answer(result: unknown, limit: number): Outcome;
}

/** Look at what a user declares. Throws a `TypeError` that says what to write instead. */
export function handlerOf<Input, Output>(
  name: string,
  options: CapabilityOptions<Input, Output>,
  handle: HandlerFunction<Input, Output>,
): Handler {
  const match = CAPABILITY.exec(name);
  if (match === null) {
    throw new TypeError(`${name} is not a capability; write a dotted name and a version, such as 'text.summarize@1'`);
  }
  const { effect, expectedLatency } = options;
  if (effect !== undefined && !Object.hasOwn(EFFECTS, effect)) {
    throw new TypeError(`effect ${effect} must be one of ${Object.keys(EFFECTS).join(", ")}`);
  }
  const enveloped = options.input === Payload;
  const input = enveloped ? undefined : (options.input as JsonSchema | undefined);
  const output = options.output as JsonSchema | undefined;
  const [checkInput, checkOutput] = [check(name, "input", input), check(name, "output", output)];
  return {
    key: name,
    capability: Capability.fromPartial({
      name: match[1],
      version: match[2],
      description: (options.description ?? "").slice(0, DESCRIPTION).toWellFormed(),
      inputSchema: text(name, input),
      outputSchema: text(name, output),
      effect: effect === undefined ? Effect.UNSPECIFIED : EFFECTS[effect],
      idempotent: options.idempotent ?? false,
      clearance: [...(options.clearance ?? [])],
      cost: options.cost ?? 0,
      expectedLatency: expectedLatency === undefined ? undefined : durationOf(expectedLatency),
    }),
    async call(task) {
      const argument = enveloped ? task.input : argumentOf(task, checkInput);
      return await handle(argument as InputOf<Input>, task);
    },
    answer: (result, limit) =>
      result instanceof Subgraph
        ? { $case: "subgraph", value: subgraphOf(result, limit) }
        : { $case: "output", value: answerOf(result, limit, checkOutput) },
  };
}

function argumentOf(task: Task, fits: Check): unknown {
  let value: unknown;
  let mismatch: Mismatch | undefined;
  try {
    value = valueOf(task.input.message);
    mismatch = fits(value);
  } catch (error) {
    throw invalidInput(error instanceof RangeError ? "the value is nested too deeply" : (error as Error).message);
  }
  if (mismatch !== undefined) throw invalidInput(`the input does not fit: ${mismatch.message}`, { field: mismatch.field });
  return value;
}

function answerOf(result: unknown, limit: number, fits: Check): PayloadMessage {
  if (!(result instanceof Payload)) {
    let mismatch: Mismatch | undefined;
    try {
      mismatch = fits(result === undefined ? null : result);
    } catch (error) {
      throw invalidOutput(`the output cannot travel: ${(error as Error).message}`);
    }
    if (mismatch !== undefined) throw invalidOutput(`the output does not fit: ${mismatch.message}`, { field: mismatch.field });
  }
  return travelling("the output", result, limit);
}

function check(name: string, what: string, schema: JsonSchema | undefined): Check {
  if (schema === undefined) return () => undefined;
  try {
    return checkOf(schema);
  } catch (cause) {
    throw new TypeError(`the ${what} schema of ${name} is not a JSON Schema: ${(cause as Error).message}`, { cause });
  }
}

function text(name: string, schema: JsonSchema | undefined): string {
  if (schema === undefined) return "";
  const said = JSON.stringify(schema);
  if (said.length > SCHEMA) {
    throw new TypeError(`a schema of ${name} has ${String(said.length)} characters; at most ${String(SCHEMA)} are allowed`);
  }
  return said;
}

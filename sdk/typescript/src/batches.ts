/**
 * Tasks gathered for functions that handle several at once.
 *
 * A batch begins when it is full, when its first task has waited `maxWait`, or when a task in it has waited for half of the
 * time it has: none may miss its deadline by waiting for others. Each task has an outcome of its own. A cancelled one has it at
 * once, whatever becomes of the rest; the function's signal is aborted when nobody is left that wants its work.
 */
import { Failure, invalidOutput } from "./failures.js";
import { type Task } from "./task.js";
import { Deferred } from "./waiting.js";

const LONGEST_WAIT = 60_000;

/** When a batch begins. */
export interface BatchRule {
  /** Tasks that make it full: 2 to the agent's concurrency. */
  maxSize: number;
  /** Milliseconds that its first task waits for others, up to a minute. */
  maxWait: number;
}

/** The function behind a batch: an answer for each input, in their order; a `Failure` fails that task alone. */
export type BatchFunction<Input, Output> = (
  inputs: Input[],
  tasks: Task[],
  signal: AbortSignal,
) => readonly (Output | Failure)[] | Promise<readonly (Output | Failure)[]>;

interface Member {
  readonly task: Task;
  readonly input: unknown;
  readonly outcome: Deferred<unknown>;
  wanted: boolean;
}

class Gathered {
  readonly members: Member[] = [];
  readonly over = new AbortController();
  due = Infinity;
  timer: NodeJS.Timeout | undefined;

  get wanted(): Member[] {
    return this.members.filter((member) => member.wanted);
  }
}

/** What waits to become a batch of one capability. */
export class Batches {
  readonly #rule: BatchRule;
  readonly #work: BatchFunction<never, unknown>;
  #open: Gathered | undefined;

  constructor(rule: BatchRule, work: BatchFunction<never, unknown>) {
    this.#rule = rule;
    this.#work = work;
  }

  /** The outcome of a task in its batch. Rejects with what fails it, or with its cancellation. */
  async join(input: unknown, task: Task): Promise<unknown> {
    const member: Member = { task, input, outcome: new Deferred(), wanted: true };
    const batch = (this.#open ??= new Gathered());
    batch.members.push(member);
    const leave = (): void => { this.#leave(batch, member); };
    task.signal.addEventListener("abort", leave, { once: true });
    if (batch.wanted.length >= this.#rule.maxSize) this.#begin(batch);
    else this.#setTimer(batch, task);
    try {
      return await member.outcome.promise;
    } finally {
      task.signal.removeEventListener("abort", leave);
    }
  }

  /** Begin what is gathered: nothing more will come. */
  flush(): void {
    if (this.#open !== undefined) this.#begin(this.#open);
  }

  #setTimer(batch: Gathered, task: Task): void {
    const wait = Math.min(this.#rule.maxWait, (task.remaining ?? Infinity) / 2);
    const due = performance.now() + wait;
    if (due >= batch.due) return;
    clearTimeout(batch.timer);
    batch.due = due;
    batch.timer = setTimeout(() => { this.#begin(batch); }, wait);
  }

  #leave(batch: Gathered, member: Member): void {
    member.wanted = false;
    member.outcome.reject(member.task.cancelled);
    if (batch.wanted.length > 0) return;
    clearTimeout(batch.timer);
    batch.over.abort(member.task.cancelled);
    if (this.#open === batch) this.#open = undefined;
  }

  #begin(batch: Gathered): void {
    clearTimeout(batch.timer);
    this.#open = undefined;
    void this.#run(batch, batch.wanted); // never rejects
  }

  async #run(batch: Gathered, members: readonly Member[]): Promise<void> {
    try {
      const [inputs, tasks] = [members.map(({ input }) => input), members.map(({ task }) => task)];
      const results = await this.#work(inputs as never[], tasks, batch.over.signal);
      if (!Array.isArray(results) || results.length !== members.length) {
        const got = Array.isArray(results) ? `${String(results.length)} outcomes` : `a ${typeof results}`;
        const size = String(members.length);
        throw invalidOutput(`${size} tasks were handed over and ${got} came back; answer a list, one for each`);
      }
      members.forEach(({ outcome }, at) => {
        const result: unknown = results[at];
        if (result instanceof Failure) outcome.reject(result);
        else outcome.resolve(result);
      });
    } catch (thrown) {
      for (const { outcome } of members) outcome.reject(thrown);
    }
  }
}

/** Throws a `TypeError` for a rule that cannot be kept. */
export function checkRule(name: string, { maxSize, maxWait }: BatchRule, concurrency: number): void {
  if (!Number.isInteger(maxSize) || maxSize < 2 || maxSize > concurrency) {
    throw new TypeError(`${name}: maxSize ${String(maxSize)} must be 2 to the agent's concurrency, ${String(concurrency)}`);
  }
  if (!(maxWait > 0 && maxWait <= LONGEST_WAIT)) {
    throw new TypeError(`${name}: maxWait ${String(maxWait)} must be more than 0 and at most ${String(LONGEST_WAIT)}`);
  }
}

/** Waiting with a limit, and for whichever comes first; every timer and listener that it makes is taken away again. */

/** Nothing came within the time there was. */
export class TimedOut extends Error {
  override readonly name = "TimedOut";
}

const LONGEST = 2 ** 31 - 1; // milliseconds; a longer timer of Node's ends at once

/** Calls `then` after `time` milliseconds, however many. Answers how to prevent it. */
export function after(time: number, then: () => void): () => void {
  let timer: NodeJS.Timeout;
  const wait = (left: number): void => {
    timer = left > LONGEST ? setTimeout(() => { wait(left - LONGEST); }, LONGEST) : setTimeout(then, left);
  };
  wait(time);
  return () => { clearTimeout(timer); };
}

/** What `promise` gives. Rejects with `TimedOut` after `time` milliseconds, and with the signal's reason when it aborts. */
export async function within<Value>(promise: Promise<Value>, time: number | undefined, signal?: AbortSignal): Promise<Value> {
  return await new Promise<Value>((resolve, reject) => {
    const abort = (): void => {
      done();
      reject(signal?.reason as Error);
    };
    const late = (): void => {
      done();
      reject(new TimedOut(`no answer within ${String(time)} ms`));
    };
    const stop = time === undefined ? undefined : after(time, late);
    const done = (): void => {
      stop?.();
      signal?.removeEventListener("abort", abort);
    };
    // Listened to in any case: a promise that fails later, with nobody listening, would end the process.
    promise.then(resolve, reject).finally(done);
    if (signal?.aborted === true) abort();
    else signal?.addEventListener("abort", abort, { once: true });
  });
}

/** Resolves after `time` milliseconds. Rejects with the signal's reason when it aborts before. */
export async function pause(time: number, signal?: AbortSignal): Promise<void> {
  signal?.throwIfAborted();
  await new Promise<void>((resolve, reject) => {
    const abort = (): void => {
      stop();
      reject(signal?.reason as Error);
    };
    const stop = after(time, () => {
      signal?.removeEventListener("abort", abort);
      resolve();
    });
    signal?.addEventListener("abort", abort, { once: true });
  });
}

/** Begin `work`. The promise may fail while nobody listens to it yet, which would end the process otherwise. */
export function begin<Value>(work: () => Promise<Value>): Promise<Value> {
  const promise = work();
  promise.catch(() => undefined);
  return promise;
}

/** A promise and what settles it. */
export class Deferred<Value = void> {
  readonly promise: Promise<Value>;
  resolve!: (value: Value) => void;
  reject!: (error: unknown) => void;

  constructor() {
    this.promise = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
  }
}

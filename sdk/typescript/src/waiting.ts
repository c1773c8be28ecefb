/** Waiting with a limit, and for whichever comes first; every timer and listener that it makes is taken away again. */

/** Nothing came within the time there was. */
export class TimedOut extends Error {
  override readonly name = "TimedOut";
}

/** What `promise` gives. Rejects with `TimedOut` after `time` milliseconds, and with the signal's reason when it aborts. */
export async function within<Value>(promise: Promise<Value>, time: number | undefined, signal?: AbortSignal): Promise<Value> {
  return await new Promise<Value>((resolve, reject) => {
    const abort = (): void => {
      done();
      reject(signal?.reason as Error);
    };
    const timer =
      time === undefined
        ? undefined
        : setTimeout(() => {
            done();
            reject(new TimedOut(`no answer within ${String(time)} ms`));
          }, time);
    const done = (): void => {
      clearTimeout(timer);
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
      clearTimeout(timer);
      reject(signal?.reason as Error);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, time);
    signal?.addEventListener("abort", abort, { once: true });
  });
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

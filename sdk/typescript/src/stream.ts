/**
 * Both directions of one bidirectional stream: one reader, and one writer.
 *
 * The reader decides how a stream ended: only reading tells gRPC's status. A writer that ends, or fails, lets the reader
 * go on for a moment to find out.
 */
import { type ClientWritableStream } from "@grpc/grpc-js";

import { TimedOut, within } from "./waiting.js";

const WRITE = 60_000;
const LINGER = 10_000;

/**
 * Read and write until nothing is left to read. `write` gets a signal that is aborted when the stream has ended. Rejects as
 * `read` does; with `TimedOut` when the other side is stuck; with the signal's reason when it is aborted.
 */
export async function talk(
  read: Promise<void>,
  write: (ended: AbortSignal) => Promise<void>,
  signal: AbortSignal,
): Promise<void> {
  const over = new AbortController();
  const ended = AbortSignal.any([signal, over.signal]);
  const writing = write(ended);
  // What a writer fails with is a broken stream, of which the reader knows more, or a bug, which is thrown below.
  const stopped = writing.catch(() => undefined);
  try {
    await within(Promise.race([read, stopped]), undefined, signal);
    await within(read, LINGER, signal);
  } finally {
    over.abort();
    read.catch(() => undefined); // thrown above, or ended by us
    await stopped;
  }
}

/** Hand one message to the transport, when it has room. Rejects with `TimedOut` when the other side stopped reading. */
export async function write<Request>(
  stream: Pick<ClientWritableStream<Request>, "write">,
  message: Request,
  signal: AbortSignal,
): Promise<void> {
  const written = new Promise<void>((resolve, reject) => {
    stream.write(message, (error?: Error | null) => {
      if (error) reject(error);
      else resolve();
    });
  });
  try {
    await within(written, WRITE, signal);
  } catch (error) {
    if (error instanceof TimedOut) throw new TimedOut("the other side of the stream has stopped reading");
    throw error;
  }
}

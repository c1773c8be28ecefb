/** What every part of the client stands on: the connection, calls with deadlines and repetition, pages, payloads. */
import { createHash } from "node:crypto";

import { Metadata } from "@grpc/grpc-js";

import { call, type CallTimes, limited, metadata, once, resume, type ServerStreamMethod, type UnaryMethod } from "./calls.js";
import { type Connection, type Generation } from "./connection.js";
import { AntiphonError, errorOf, fromServiceError, isServiceError } from "./errors.js";
import { Payload as PayloadMessage } from "./gen/antiphon/v1/payload.js";
import {
  DownloadPayloadRequest,
  PayloadServiceService,
  UploadPayloadRequest,
  type UploadPayloadResponse,
} from "./gen/antiphon/v1/payload_service.js";
import { type Logger } from "./log.js";
import { Payload } from "./payload.js";
import { write } from "./stream.js";

const CHUNK = 1 << 20;
const SLOWEST = 1 << 20; // bytes a second that an upload is given at least

interface PageRequest {
  pageToken: string;
}

interface Page {
  nextPageToken: string;
}

/** How many items a page holds; the server's own choice by default. */
export interface PageOptions extends CallTimes {
  pageSize?: number;
}

/** A connection with the patience to use it. */
export class Caller {
  /** `timeout` is the deadline of a unary call in milliseconds, `patience` how long a stream is dialled again. */
  protected constructor(
    protected readonly connection: Connection,
    protected readonly timeout: number,
    protected readonly patience: number,
    protected readonly logger: Logger,
  ) {}

  /** Keep a value of any size and return what to send in its place; empty media type means JSON. */
  async uploadPayload(data: Uint8Array, mediaType = "", times: CallTimes = {}): Promise<Payload> {
    const digest = sha256(data);
    const limit = times.timeout ?? 30_000 + (data.length / SLOWEST) * 1000;
    const send = (to: Generation, left: number): Promise<UploadPayloadResponse> => upload(to, digest, data, left, times.signal);
    const { blob } = await call(this.connection, send, limit, times.signal);
    if (blob === undefined) throw new TypeError("the answer lacks the reference to the payload");
    return new Payload(PayloadMessage.fromPartial({ content: { $case: "blob", value: blob }, mediaType }));
  }

  /**
   * The bytes of a payload, inline or kept by reference, or of a digest, after as long as it takes unless there is a `timeout`.
   * Throws PAYLOAD_NOT_FOUND; DEADLINE_EXCEEDED after `timeout`.
   */
  async downloadPayload(payload: Payload | string, times: CallTimes = {}): Promise<Buffer> {
    let digest = payload;
    if (digest instanceof Payload) {
      const { content } = digest.message;
      if (content?.$case !== "blob") return content?.value ?? Buffer.alloc(0);
      digest = content.value.digest;
    }
    const parts: Buffer[] = [];
    let offset = 0;
    const request = (): DownloadPayloadRequest => DownloadPayloadRequest.fromPartial({ digest: digest, offset });
    await limited(times, `payload ${digest} has not come`, async (signal) => {
      for await (const { chunk } of this.stream(PayloadServiceService.downloadPayload, request, signal)) {
        parts.push(chunk);
        offset += chunk.length;
      }
    });
    const data = Buffer.concat(parts);
    const actual = sha256(data);
    if (actual !== digest) {
      const text = `the content has digest ${actual}, asked for was ${digest}`;
      throw errorOf("PAYLOAD_DIGEST_MISMATCH", text, { metadata: { expected: digest, actual } });
    }
    return data;
  }

  /** One unary call, with a deadline and tried again where the registry says so; a call that is not `repeatable` once. */
  protected async ask<Request, Response>(
    method: UnaryMethod<Request, Response>,
    request: Request,
    times: CallTimes = {},
  ): Promise<Response> {
    const headers = metadata();
    const send = (to: Generation, left: number): Promise<Response> => once(to, method, request, headers, left, times.signal);
    return await call(this.connection, send, times.timeout ?? this.timeout, times.signal);
  }

  /** The messages of a stream that goes on where it broke. */
  protected stream<Request, Response>(
    method: ServerStreamMethod<Request, Response>,
    request: () => Request,
    signal?: AbortSignal,
  ): AsyncGenerator<Response, void> {
    return resume(this.connection, method, request, this.patience, signal);
  }

  /** The items of all pages, fetched as needed. */
  protected async *pages<Request extends PageRequest, Response extends Page, Item>(
    method: UnaryMethod<Request, Response>,
    request: Request,
    items: (page: Response) => readonly Item[],
    times: CallTimes = {},
  ): AsyncGenerator<Item, void> {
    for (;;) {
      const page = await this.ask(method, request, times);
      yield* items(page);
      if (page.nextPageToken === "") return;
      request.pageToken = page.nextPageToken;
    }
  }
}

/** What the contract says is always in an answer. */
export function there<Value>(value: Value | undefined): Value {
  if (value === undefined) throw new AntiphonError("the answer lacks what was asked for");
  return value;
}

function sha256(data: Uint8Array): string {
  return createHash("sha256").update(data).digest("hex");
}

async function upload(
  to: Generation,
  digest: string,
  data: Uint8Array,
  time: number,
  signal: AbortSignal | undefined,
): Promise<UploadPayloadResponse> {
  const { path, requestSerialize, responseDeserialize } = PayloadServiceService.uploadPayload;
  signal?.throwIfAborted();
  const over = new AbortController();
  let settle!: (error: Error | null, response?: UploadPayloadResponse) => void;
  const answered = new Promise<UploadPayloadResponse>((resolve, reject) => {
    settle = (error, response) => {
      over.abort();
      if (error === null && response !== undefined) resolve(response);
      else reject(isServiceError(error) ? fromServiceError(error) : (error ?? new TypeError("no answer")));
    };
  });
  const options = { deadline: Date.now() + time };
  const headers: Metadata = metadata();
  const stream = to.channel.makeClientStreamRequest(path, requestSerialize, responseDeserialize, headers, options, settle);
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  const send = async (): Promise<void> => {
    for (let start = 0; start === 0 || start < bytes.length; start += CHUNK) {
      const chunk = bytes.subarray(start, start + CHUNK);
      await write(stream, UploadPayloadRequest.fromPartial({ digest: start === 0 ? digest : "", chunk }), over.signal);
    }
    stream.end();
  };
  const abort = (): void => { stream.cancel(); };
  signal?.addEventListener("abort", abort, { once: true });
  try {
    // A refusal ends the stream before all is written; the answer tells why.
    void send().catch(() => undefined);
    return await answered;
  } catch (error) {
    signal?.throwIfAborted();
    throw error;
  } finally {
    signal?.removeEventListener("abort", abort);
    stream.cancel();
  }
}

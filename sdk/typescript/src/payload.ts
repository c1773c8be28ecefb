/** The envelope of every value that travels, and JSON in it. */
import { invalidOutput } from "./failures.js";
import { Payload as PayloadMessage } from "./gen/antiphon/v1/payload.js";

/** The largest value in bytes that travels inline; larger ones go by reference. */
export const INLINE_LIMIT = 65536;

/** Bytes of all that comes with a value: labels, and other texts. */
export const EXTRAS = 262_144;

/**
 * A value as it travels, with media type and labels: for values that are not JSON, or are too large to travel. Handlers
 * take one when `input: Payload` is declared, and may return one.
 */
export class Payload {
  /** `message` is the message of the contracts. */
  constructor(readonly message: PayloadMessage) {}

  /** A value of any media type that travels inline; at most 64 KiB. */
  static inline(data: Uint8Array, mediaType = ""): Payload {
    const value = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
    return new Payload(PayloadMessage.fromPartial({ content: { $case: "inline", value }, mediaType }));
  }

  /** The bytes; undefined when the value is kept by reference, empty when there is none. */
  get data(): Buffer | undefined {
    const { content } = this.message;
    if (content === undefined) return Buffer.alloc(0);
    return content.$case === "inline" ? content.value : undefined;
  }

  /** The JSON value it holds; absent content is null. Throws an `Error` for other media and references. */
  json(): unknown {
    return valueOf(this.message);
  }
}

/** The JSON value a payload holds. Throws an `Error` that says what to do instead. */
export function valueOf(payload: PayloadMessage | undefined): unknown {
  const content = payload?.content;
  if (payload === undefined || content === undefined) return null;
  if (content.$case === "blob") {
    throw new Error(
      `the value is kept by reference (${String(content.value.size)} bytes); ` +
        "take it as Payload and fetch it with client.downloadPayload",
    );
  }
  const media = payload.mediaType.split(";", 1)[0]?.trim();
  if (media !== "" && media !== "application/json") {
    throw new Error(`the value is ${payload.mediaType}, not JSON; take it as Payload`);
  }
  return parse(content.value);
}

const decoder = new TextDecoder("utf-8", { fatal: true });

/** JSON text as a value. The message of a mistake never quotes the value, which may be confidential. */
function parse(data: Buffer): unknown {
  try {
    return JSON.parse(decoder.decode(data));
  } catch {
    throw new Error("the value is not JSON in UTF-8");
  }
}

/** A value as JSON; undefined is null. Throws a `TypeError` for what JSON cannot hold. */
export function encode(value: unknown): Buffer {
  const text = JSON.stringify(value === undefined ? null : value, refuse) as string | undefined;
  if (text === undefined) throw new TypeError(`a ${typeof value} is not JSON`);
  return Buffer.from(text);
}

/** A value or a payload as a message. Throws a `TypeError` for what JSON cannot hold, or a payload that cannot be sent. */
export function payloadOf(value: unknown): PayloadMessage {
  if (!(value instanceof Payload)) return inlineOf(encode(value));
  // Made by hand it may hold anything, and what cannot be encoded, or is far too large, would break the stream of all.
  const size = PayloadMessage.encode(value.message).finish().length - (value.data?.length ?? 0);
  if (size > EXTRAS) {
    throw new TypeError(`the value has ${String(size)} bytes of labels and other texts, larger than ${String(EXTRAS)} bytes`);
  }
  return value.message;
}

/**
 * A value or a payload as a message that travels inline, with at most `limit` bytes of content. Throws an INVALID_OUTPUT
 * failure that calls it `what`.
 */
export function travelling(what: string, value: unknown, limit: number): PayloadMessage {
  let message: PayloadMessage;
  try {
    message = payloadOf(value);
  } catch (cause) {
    throw invalidOutput(`${what} cannot travel: ${(cause as Error).message}`, { cause });
  }
  const size = message.content?.$case === "inline" ? message.content.value.length : 0;
  if (size <= limit) return message;
  throw invalidOutput(
    `${what} has ${String(size)} bytes, larger than ${String(limit)} bytes; ` +
      "make it smaller, or upload it with client.uploadPayload and hand on the Payload that it answers",
  );
}

/** JSON bytes as a message. */
export function inlineOf(data: Buffer): PayloadMessage {
  return PayloadMessage.fromPartial({ content: { $case: "inline", value: data } });
}

/** JSON.stringify makes null of numbers that are none, which would be another value. */
function refuse(key: string, value: unknown): unknown {
  if (typeof value === "number" && !Number.isFinite(value)) {
    throw new TypeError(`${key === "" ? "the value" : JSON.stringify(key)} is a number that JSON cannot hold`);
  }
  return value;
}

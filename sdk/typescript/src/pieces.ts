/**
 * Pieces of output that wait for their way on. They are worth little, and only in time: what finds no room is left out, which
 * the offsets show. Text that follows text is joined, so that many small pieces become one larger one.
 */
import { invalidOutput } from "./failures.js";
import { type PartialUpdate } from "./gen/antiphon/v1/agent_service.js";
import { Label } from "./gen/antiphon/v1/payload.js";
import { PartialOutput } from "./gen/antiphon/v1/run.js";
import { encode, Payload, valueOf } from "./payload.js";

const TEXT = 4096; // characters of a piece
const JSON_BYTES = 16_384; // of a piece
const LABEL_BYTES = 15_360; // of a piece, which has less than the 32 KiB that sidecars take, then
const MAKER_BYTES = 65_536; // that may wait of one attempt
const ALL_BYTES = 1 << 20; // and of all
const MESSAGE_PIECES = 64;
const MESSAGE_BYTES = 262_144; // about so many: what counts travels in the same messages
const OVERHEAD = 64;

/** Pieces by attempt: those of one leave in the order they came in. */
export class Pieces {
  readonly #waiting = new Map<string, PartialOutput[]>();
  readonly #bytes = new Map<string, number>();
  #all = 0;

  /** Whether nothing waits. */
  get empty(): boolean {
    return this.#waiting.size === 0;
  }

  /** Add a piece; one that finds no room is left out. */
  add(attemptId: string, piece: PartialOutput): void {
    const waiting = this.#waiting.get(attemptId) ?? [];
    const last = waiting.at(-1);
    const joined = last === undefined ? undefined : joinedText(last, piece);
    const size = joined === undefined ? sizeOf(piece) : contentBytes(piece);
    const own = this.#bytes.get(attemptId) ?? 0;
    if (own + size > MAKER_BYTES || this.#all + size > ALL_BYTES) return;
    if (last !== undefined && joined !== undefined) last.content = { $case: "text", value: joined };
    else waiting.push(piece);
    this.#waiting.set(attemptId, waiting);
    this.#bytes.set(attemptId, own + size);
    this.#all += size;
  }

  /** What goes into the next message; attempts take turns. */
  take(): PartialUpdate[] {
    const taken: PartialUpdate[] = [];
    let room = MESSAGE_BYTES;
    while (taken.length < MESSAGE_PIECES && room > 0) {
      const [first] = this.#waiting;
      if (first === undefined) break;
      const [attemptId, waiting] = first;
      this.#waiting.delete(attemptId);
      const partial = waiting.shift();
      if (partial === undefined) continue;
      const size = sizeOf(partial);
      taken.push({ attemptId, partial });
      room -= size;
      this.#all -= size;
      if (waiting.length > 0) {
        this.#waiting.set(attemptId, waiting); // behind the others
        this.#bytes.set(attemptId, (this.#bytes.get(attemptId) ?? 0) - size);
      } else {
        this.#bytes.delete(attemptId);
      }
    }
    return taken;
  }
}

/** Bytes of what a piece holds, by which offsets count. */
export function contentBytes({ content }: PartialOutput): number {
  if (content === undefined) return 0;
  return content.$case === "text" ? Buffer.byteLength(content.value) : content.value.length;
}

function sizeOf(piece: PartialOutput): number {
  return contentBytes(piece) + OVERHEAD;
}

function joinedText(before: PartialOutput, piece: PartialOutput): string | undefined {
  if (before.content?.$case !== "text" || piece.content?.$case !== "text") return undefined;
  const text = before.content.value + piece.content.value;
  if (before.offset + contentBytes(before) !== piece.offset || text.length > TEXT) return undefined;
  const same =
    before.labels.length === piece.labels.length &&
    before.labels.every(({ key, value }, at) => key === piece.labels[at]?.key && value === piece.labels[at].value);
  return same ? text : undefined;
}

/** What a handler emits, in pieces that may travel; offsets are not set. Throws an INVALID_OUTPUT failure. */
export function piecesOf(emitted: unknown): PartialOutput[] {
  let value = emitted;
  let labels: Label[] = [];
  let data: Buffer;
  try {
    if (value instanceof Payload) {
      const { message } = value;
      labels = [...message.labels, ...message.fieldLabels.flatMap((part) => part.labels)];
      // What cannot be encoded, or is far too large, would break the stream of all attempts.
      const size = labels.reduce((sum, label) => sum + Label.encode(label).finish().length, 0);
      if (size > LABEL_BYTES) throw new TypeError(`its labels have ${String(size)} bytes, larger than ${String(LABEL_BYTES)} bytes`);
      value = message.mediaType.startsWith("text/") ? (value.data ?? Buffer.alloc(0)).toString() : valueOf(message);
    }
    data = typeof value === "string" ? Buffer.alloc(0) : encode(value);
  } catch (cause) {
    throw invalidOutput(`what is emitted cannot travel: ${(cause as Error).message}`, { cause });
  }
  if (typeof value !== "string") {
    if (data.length > JSON_BYTES) {
      const size = String(data.length);
      throw invalidOutput(`what is emitted has ${size} bytes as JSON; at most ${String(JSON_BYTES)} travel, or any text`);
    }
    return [PartialOutput.fromPartial({ content: { $case: "json", value: data }, labels })];
  }
  return textsOf(value.toWellFormed()).map((text) =>
    PartialOutput.fromPartial({ content: { $case: "text", value: text }, labels }),
  );
}

/** A text in parts that fit a piece each, cut between characters. */
function textsOf(text: string): string[] {
  const texts: string[] = [];
  for (let start = 0; start < text.length; ) {
    let end = Math.min(start + TEXT, text.length);
    if (end < text.length && /[\ud800-\udbff]/.test(text.charAt(end - 1))) end -= 1;
    texts.push(text.slice(start, end));
    start = end;
  }
  return texts;
}

/** W3C trace context, as far as it is passed on: an id to find one piece of work by, everywhere it went. */
import { randomBytes } from "node:crypto";

import { currentTask } from "./task.js";

/** The traceparent of the task this code runs for, or a new one. */
export function traceparent(): string {
  const own = currentTask()?.traceparent ?? "";
  return own === "" ? `00-${randomBytes(16).toString("hex")}-${randomBytes(8).toString("hex")}-01` : own;
}

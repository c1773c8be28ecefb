/** The part of the client that steers runs which are under way. */
import { BinaryReader, BinaryWriter } from "@bufbuild/protobuf/wire";

import { type CallTimes, remaining, requestIdOf, type UnaryMethod } from "./calls.js";
import { there } from "./caller.js";
import { ContextCalls } from "./client-context.js";
import { type Run, type Task, type TaskKey } from "./gen/antiphon/v1/run.js";
import {
  CancelTaskRequest,
  GetTaskRequest,
  PauseRunRequest,
  ResolveTaskRequest,
  ResumeRunRequest,
  RetryTaskRequest,
  RunServiceService,
  SignalRunRequest,
} from "./gen/antiphon/v1/run_service.js";
import { payloadOf } from "./payload.js";
import { inputOf } from "./submission.js";

// The end of a task goes back as it came: a `Date` would cut it to milliseconds, and it is compared to the microsecond.
const GET_TASK: UnaryMethod<GetTaskRequest, Buffer> = { ...RunServiceService.getTask, responseDeserialize: (bytes) => bytes };
const TASK = 1; // of GetTaskResponse
const END_TIME = 10; // of Task
const EXPECTED_END_TIME = (3 << 3) | 2; // of RetryTaskRequest, as it is written: its number, and that it is a message

/** One member of a forEach, counted from 1; 0 (default) is the task itself. */
export interface MemberOptions extends CallTimes {
  member?: number;
}

/** What an act upon a task may say. */
export interface ActOptions extends MemberOptions {
  /** Why, for the record. */
  reason?: string;
}

/** What somebody may ask of a run between its submission and its end. */
export class SteeringCalls extends ContextCalls {
  /**
   * Send a signal to a run, for the task that waits for it or will; `data`, as the input of `submit`, becomes its output. The
   * answer names that task; undefined means that the signal is kept for one. Repeated with the same `requestId` it is one
   * signal. Throws RUN_NOT_FOUND, RUN_ENDED, SIGNAL_NOT_EXPECTED, REQUEST_ID_REUSED.
   */
  async signal(
    runId: string,
    signal: string,
    data?: unknown,
    options: { requestId?: string } & CallTimes = {},
  ): Promise<TaskKey | undefined> {
    const left = remaining(options);
    const payload = await inputOf((large) => this.uploadPayload(large, "", left()), data);
    const requestId = requestIdOf(options.requestId);
    const request = SignalRunRequest.fromPartial({ requestId, runId, signal, payload });
    return (await this.ask(RunServiceService.signalRun, request, left())).key;
  }

  /** Hold a run: attempts that are out go on, nothing else begins. Throws RUN_NOT_FOUND, RUN_ENDED. */
  async pause(runId: string, reason = "", times?: CallTimes): Promise<Run> {
    const request = PauseRunRequest.fromPartial({ runId, reason });
    return there((await this.ask(RunServiceService.pauseRun, request, times)).run);
  }

  /** Let a paused run go on. Throws RUN_NOT_FOUND, RUN_ENDED. */
  async resume(runId: string, reason = "", times?: CallTimes): Promise<Run> {
    const request = ResumeRunRequest.fromPartial({ runId, reason });
    return there((await this.ask(RunServiceService.resumeRun, request, times)).run);
  }

  /** End a task of a run, and with `dependents` all that need it. Throws TASK_NOT_FOUND, RUN_ENDED. */
  async cancelTask(runId: string, taskId: string, options: ActOptions & { dependents?: boolean } = {}): Promise<Task> {
    const { dependents = false, reason = "" } = options;
    const request = CancelTaskRequest.fromPartial({ runId, key: keyOf(taskId, options), dependents, reason });
    return there((await this.ask(RunServiceService.cancelTask, request, options)).task);
  }

  /**
   * Take up a failed task of a run that has not ended, and with it what was skipped because of it. It looks the task up first,
   * so that a call which has to be repeated does not retry twice. Throws TASK_NOT_FOUND, TASK_STATE_CONFLICT, RUN_ENDED.
   */
  async retry(runId: string, taskId: string, options: ActOptions = {}): Promise<Task> {
    const key = keyOf(taskId, options);
    const seen = there(fieldOf(await this.ask(GET_TASK, GetTaskRequest.fromPartial({ runId, key }), options), TASK));
    const request = RetryTaskRequest.fromPartial({ runId, key, reason: options.reason ?? "" });
    const end = fieldOf(seen, END_TIME);
    if (end !== undefined) request._unknownFields = { [EXPECTED_END_TIME]: [new BinaryWriter().bytes(end).finish()] };
    return there((await this.ask(RunServiceService.retryTask, request, options)).task);
  }

  /**
   * Say what becomes of a task that is ESCALATED: it succeeds with `output` (null by default), or with `failure` it fails.
   * Throws TASK_NOT_FOUND, TASK_STATE_CONFLICT, RUN_ENDED.
   */
  async resolve(
    runId: string,
    taskId: string,
    answer: { output?: unknown } | { failure: string },
    options: ActOptions = {},
  ): Promise<Task> {
    const left = remaining(options);
    const request = ResolveTaskRequest.fromPartial({
      runId,
      key: keyOf(taskId, options),
      reason: options.reason ?? "",
      answer:
        "failure" in answer
          ? { $case: "failure", value: answer.failure }
          : {
              $case: "output",
              value: (await inputOf((large) => this.uploadPayload(large, "", left()), answer.output)) ?? payloadOf(null),
            },
    });
    return there((await this.ask(RunServiceService.resolveTask, request, left())).task);
  }
}

/** The key of a task, or of a member of it. */
export function keyOf(taskId: string, options: MemberOptions): TaskKey {
  return { taskId, member: options.member ?? 0 };
}

/** The bytes of a field that is a message; undefined when it is not there. */
function fieldOf(message: Uint8Array, field: number): Uint8Array | undefined {
  const reader = new BinaryReader(message);
  let found: Uint8Array | undefined;
  while (reader.pos < reader.len) {
    const [number, type] = reader.tag();
    if (number === field) found = reader.bytes();
    else reader.skip(type, number);
  }
  return found;
}

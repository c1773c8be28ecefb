/**
 * A client of the orchestrators: submits runs, follows them, reads and changes what there is.
 *
 *     const client = await Client.connect();
 *     const run = await client.submit("review@1", { folder: "…" }, { wait: true });
 *     console.log(outputOf(run));
 *     client.close();
 *
 * Records are the messages of `antiphon.v1` as they are (`Run`, `Task`, `Agent`, …): one definition, documented in the
 * contracts, with fields of newer servers kept. Only payloads are turned into values, where `outputOf` is asked. Every
 * unary call has a deadline and is repeated as `calls.ts` says; every error is an `AntiphonError`.
 */
import { type CallTimes, limited, metadata, once, remaining, requestIdOf, Tries } from "./calls.js";
import { type PageOptions, there } from "./caller.js";
import { OperatorCalls } from "./client-operator.js";
import { keyOf, type MemberOptions } from "./client-steering.js";
import { Connection } from "./connection.js";
import { checkAddresses, type Credentials, loadProfile } from "./credentials.js";
import { AntiphonError, errorOf } from "./errors.js";
import { RunFailed } from "./failures.js";
import { Failure as FailureMessage } from "./gen/antiphon/v1/failure.js";
import { type Graph as GraphMessage } from "./gen/antiphon/v1/graph.js";
import {
  GetGraphRequest,
  GraphServiceService,
  ListGraphsRequest,
  type RegisteredGraph,
  RegisterGraphRequest,
  type RegisterGraphResponse,
  ValidateGraphRequest,
  type ValidateGraphResponse,
} from "./gen/antiphon/v1/graph_service.js";
import { type DecisionRecord, type PolicySet } from "./gen/antiphon/v1/policy.js";
import {
  CheckRequest,
  DecisionOutcome,
  GetPolicyRequest,
  ListDecisionsRequest,
  ListPoliciesRequest,
  PolicyServiceService,
} from "./gen/antiphon/v1/policy_service.js";
import { type Agent as AgentRecord } from "./gen/antiphon/v1/registry.js";
import {
  DrainAgentRequest,
  GetAgentRequest,
  ListAgentsRequest,
  ListCapabilitiesRequest,
  type OfferedCapability,
  RegistryServiceService,
  ResumeAgentRequest,
  SuspendAgentRequest,
} from "./gen/antiphon/v1/registry_service.js";
import { type Attempt, type Run, type RunEvent, RunState, type Task, type TaskState } from "./gen/antiphon/v1/run.js";
import {
  CancelRunRequest,
  ExplainTaskRequest,
  type ExplainTaskResponse,
  GetRunRequest,
  GetTaskRequest,
  ListAttemptsRequest,
  ListRunsRequest,
  ListTasksRequest,
  RunServiceService,
  type SubmitRunRequest,
  WatchRunRequest,
  type WatchRunResponse,
} from "./gen/antiphon/v1/run_service.js";
import { type Graph } from "./graph.js";
import { type Logger, stderrLogger } from "./log.js";
import { valueOf } from "./payload.js";
import { graphOf, type GraphSource, submission, type SubmitOptions } from "./submission.js";
import { Submitter } from "./submitter.js";

const WAIT_STEP = 300_000;
const ASIDE = 1000; // that whoever stops waiting is kept, at most, to learn which run goes on
const TIMEOUT = 10_000;
const PATIENCE = 120_000;

/** How to connect. */
export interface ConnectOptions {
  /** A profile by name; `ANTIPHON_PROFILE` or `default` when not given. */
  profile?: string;
  /** host:port, one or several; overrides the profile's. */
  address?: string | readonly string[];
  /** Overrides the profile's. */
  credentials?: Credentials;
  /** Deadline of each unary call in milliseconds, tries included; 10,000 by default. */
  timeout?: number;
  /** Milliseconds from a stream's first failure for which it is dialled again before its error is thrown; 120,000 by default. */
  patience?: number;
  /** Where it says what happens; standard error by default. */
  logger?: Logger;
}

/** A connection to the orchestrators of one identity. */
export class Client extends OperatorCalls {
  /**
   * A client, by a profile or by `address` and `credentials`. Changed certificate files are noticed within seconds; whoever
   * wrote the profile renews them (`antiphon certs renew`). Rejects with a `SetupError`.
   */
  static async connect(options: ConnectOptions = {}): Promise<Client> {
    const { address, logger = stderrLogger } = options;
    let addresses = typeof address === "string" ? [address] : (address ?? []);
    let credentials = options.credentials;
    if (addresses.length === 0 || credentials === undefined) {
      const found = await loadProfile(options.profile);
      addresses = addresses.length === 0 ? found.addresses : addresses;
      credentials ??= found.credentials;
    }
    checkAddresses(addresses);
    const connection = await Connection.open(addresses, credentials, logger);
    return new Client(connection, options.timeout ?? TIMEOUT, options.patience ?? PATIENCE, logger);
  }

  /** End every call and connection. */
  close(): void {
    this.connection.close();
  }

  /** `close`, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    this.close();
    return Promise.resolve();
  }

  // Runs

  /**
   * Submit a run of a registered graph ("NAME" or "NAME@VERSION") or of the graph given, and return the run.
   *
   * `input` is anything JSON can hold, or a `Payload`; a large one is uploaded first. With `wait` the answer is the run as it
   * ended, whether it succeeded or not (`outputOf` tells), after as long as it takes unless there is a `timeout`: the run goes
   * on then, and the DEADLINE_EXCEEDED, which comes within a second, names it in its `metadata` as run_id where it is known.
   * Throws GRAPH_NOT_FOUND, GRAPH_INVALID, INPUT_INVALID, REQUEST_ID_REUSED.
   */
  async submit(graph: GraphSource, input?: unknown, options: SubmitOptions & CallTimes = {}): Promise<Run> {
    const left = remaining(options);
    const request = await submission((data) => this.uploadPayload(data, "", left()), graph, input, options);
    if (!request.wait) return there((await this.ask(RunServiceService.submitRun, request, left())).run);
    try {
      return await this.#submitAndWait(request, left());
    } catch (error) {
      if (options.timeout === undefined || !(error instanceof AntiphonError && error.reason === "DEADLINE_EXCEEDED")) throw error;
      throw await this.#named(request, error, options.timeout);
    }
  }

  /**
   * For many runs: one stream, with at most `inFlight` submissions that have no answer.
   *
   *     const submitter = client.submitter();
   *     const answers = [];
   *     for (const one of inputs) answers.push((await submitter.submit("review", one, { wait: true })).answer);
   *     const runs = await Promise.all(answers);
   *     await submitter.close();
   */
  submitter(inFlight = 1000): Submitter {
    return new Submitter(this.connection, (data) => this.uploadPayload(data), inFlight, this.patience);
  }

  /** A run with its totals. Throws RUN_NOT_FOUND. */
  async getRun(runId: string, times?: CallTimes): Promise<Run> {
    return there((await this.ask(RunServiceService.getRun, GetRunRequest.fromPartial({ runId }), times)).run);
  }

  /**
   * Runs, live and archived, newest first, without payloads. `graph`: its name, or NAME@VERSION for one version;
   * `parent`: id of the run, or of the attempt, that called for them;
   * `failure`: a part of their failure's message; `waitingForPerson`: only those in which a task is ESCALATED or QUARANTINED;
   * `waitingForSignal`: only those in which one waits for a signal; with both, those that wait for either.
   */
  listRuns(
    filter: {
      states?: readonly RunState[];
      graph?: string;
      createdAfter?: Date;
      createdBefore?: Date;
      labels?: Readonly<Record<string, string>>;
      parent?: string;
      failure?: string;
      waitingForPerson?: boolean;
      waitingForSignal?: boolean;
    } & PageOptions = {},
  ): AsyncGenerator<Run, void> {
    const request = ListRunsRequest.fromPartial({
      states: [...(filter.states ?? [])],
      graphName: filter.graph ?? "",
      createdAfter: filter.createdAfter,
      createdBefore: filter.createdBefore,
      labels: { ...filter.labels },
      parent: filter.parent ?? "",
      failureText: filter.failure ?? "",
      waitingForPerson: filter.waitingForPerson ?? false,
      waitingForSignal: filter.waitingForSignal ?? false,
      pageSize: filter.pageSize ?? 0,
    });
    return this.pages(RunServiceService.listRuns, request, (page) => page.runs, filter);
  }

  /** Tasks of a run in the order of its graph, members of a forEach after their task. Throws RUN_NOT_FOUND. */
  listTasks(
    runId: string,
    filter: { states?: readonly TaskState[]; includePayloads?: boolean } & PageOptions = {},
  ): AsyncGenerator<Task, void> {
    const request = ListTasksRequest.fromPartial({
      runId,
      states: [...(filter.states ?? [])],
      includePayloads: filter.includePayloads ?? false,
      pageSize: filter.pageSize ?? 0,
    });
    return this.pages(RunServiceService.listTasks, request, (page) => page.tasks, filter);
  }

  /** A task with its payloads. Throws TASK_NOT_FOUND. */
  async getTask(runId: string, taskId: string, options: MemberOptions = {}): Promise<Task> {
    const request = GetTaskRequest.fromPartial({ runId, key: keyOf(taskId, options) });
    return there((await this.ask(RunServiceService.getTask, request, options)).task);
  }

  /** Attempts of a task, oldest first. Throws TASK_NOT_FOUND. */
  listAttempts(runId: string, taskId: string, options: MemberOptions & PageOptions = {}): AsyncGenerator<Attempt, void> {
    const request = ListAttemptsRequest.fromPartial({
      runId,
      key: keyOf(taskId, options),
      pageSize: options.pageSize ?? 0,
    });
    return this.pages(RunServiceService.listAttempts, request, (page) => page.attempts, options);
  }

  /**
   * Events of a run after `cursor` (the `eventSeq` last seen), in order, without gap or repeat, to its end. Goes on by itself
   * after a broken stream. With `includeProgress` also what handlers say of their progress, with `includePartials` the pieces
   * of output they emit: neither has an `eventSeq`, and who reads too slowly loses some, but no events. Throws
   * RUN_NOT_FOUND, CURSOR_INVALID.
   */
  async *watch(
    runId: string,
    options: { cursor?: number; includeProgress?: boolean; includePartials?: boolean; signal?: AbortSignal } = {},
  ): AsyncGenerator<RunEvent, void> {
    for await (const message of this.#watch(runId, options)) yield* message.events;
  }

  /** The run as it ended, succeeded or not. Throws RUN_NOT_FOUND; DEADLINE_EXCEEDED after `timeout`. */
  async wait(runId: string, times: CallTimes = {}): Promise<Run> {
    return await limited(times, `run ${runId} has not ended`, async (signal) => {
      for await (const { run } of this.#watch(runId, { signal })) {
        if (run !== undefined) return run;
      }
      return await this.getRun(runId);
    });
  }

  /** Ask a run to end; one that has ended stays as it is. Throws RUN_NOT_FOUND. */
  async cancel(runId: string, reason = "", times?: CallTimes): Promise<Run> {
    const request = CancelRunRequest.fromPartial({ runId, reason });
    return there((await this.ask(RunServiceService.cancelRun, request, times)).run);
  }

  /** How a task came to be where it is: dependencies, attempts, placements, policy. Throws TASK_NOT_FOUND. */
  async explain(runId: string, taskId: string, options: MemberOptions = {}): Promise<ExplainTaskResponse> {
    const request = ExplainTaskRequest.fromPartial({ runId, key: keyOf(taskId, options) });
    return await this.ask(RunServiceService.explainTask, request, options);
  }

  // Graphs

  /** Keep a graph under its name and version. Throws GRAPH_INVALID with every mistake, GRAPH_VERSION_EXISTS. */
  async registerGraph(
    graph: Graph | GraphMessage,
    options: { requestId?: string } & CallTimes = {},
  ): Promise<RegisterGraphResponse> {
    const requestId = requestIdOf(options.requestId);
    const request = RegisterGraphRequest.fromPartial({ requestId, graph: graphOf(graph) });
    return await this.ask(GraphServiceService.registerGraph, request, options);
  }

  /** Every mistake and warning of a graph; mistakes are an answer here, not an error. */
  async validateGraph(graph: Graph | GraphMessage, times?: CallTimes): Promise<ValidateGraphResponse> {
    const request = ValidateGraphRequest.fromPartial({ graph: graphOf(graph) });
    return await this.ask(GraphServiceService.validateGraph, request, times);
  }

  /** A registered version, the highest by default. Throws GRAPH_NOT_FOUND. */
  async getGraph(name: string, version = "", times?: CallTimes): Promise<RegisteredGraph> {
    const request = GetGraphRequest.fromPartial({ name, version });
    return there((await this.ask(GraphServiceService.getGraph, request, times)).graph);
  }

  /** Registered versions in order of name, then version; of one name or of all. */
  listGraphs(name = "", options: PageOptions = {}): AsyncGenerator<RegisteredGraph, void> {
    const request = ListGraphsRequest.fromPartial({ name, pageSize: options.pageSize ?? 0 });
    return this.pages(GraphServiceService.listGraphs, request, (page) => page.graphs, options);
  }

  // Agents

  /** Agents in order of name. */
  listAgents(options: PageOptions = {}): AsyncGenerator<AgentRecord, void> {
    const request = ListAgentsRequest.fromPartial({ pageSize: options.pageSize ?? 0 });
    return this.pages(RegistryServiceService.listAgents, request, (page) => page.agents, options);
  }

  /** An agent with its live instances. Throws AGENT_NOT_FOUND. */
  async getAgent(name: string, times?: CallTimes): Promise<AgentRecord> {
    const request = GetAgentRequest.fromPartial({ name });
    return there((await this.ask(RegistryServiceService.getAgent, request, times)).agent);
  }

  /** All agents, then each as it changes, without end; after a broken stream all of them again. */
  async *watchAgents(options: { signal?: AbortSignal } = {}): AsyncGenerator<AgentRecord, void> {
    for await (const { agents } of this.stream(RegistryServiceService.watchAgents, () => ({}), options.signal)) {
      yield* agents;
    }
  }

  /** Let an agent finish what it has, and give it no more. For operators. Throws AGENT_NOT_FOUND. */
  async drainAgent(name: string, times?: CallTimes): Promise<AgentRecord> {
    const request = DrainAgentRequest.fromPartial({ name });
    return there((await this.ask(RegistryServiceService.drainAgent, request, times)).agent);
  }

  /** Give an agent no work until it is resumed. For operators. Throws AGENT_NOT_FOUND. */
  async suspendAgent(name: string, times?: CallTimes): Promise<AgentRecord> {
    const request = SuspendAgentRequest.fromPartial({ name });
    return there((await this.ask(RegistryServiceService.suspendAgent, request, times)).agent);
  }

  /** Give work again to an agent that was drained or suspended. For operators. Throws AGENT_NOT_FOUND. */
  async resumeAgent(name: string, times?: CallTimes): Promise<AgentRecord> {
    const request = ResumeAgentRequest.fromPartial({ name });
    return there((await this.ask(RegistryServiceService.resumeAgent, request, times)).agent);
  }

  /** What is offered now, with the agents behind each version. */
  listCapabilities(options: PageOptions = {}): AsyncGenerator<OfferedCapability, void> {
    const request = ListCapabilitiesRequest.fromPartial({ pageSize: options.pageSize ?? 0 });
    return this.pages(RegistryServiceService.listCapabilities, request, (page) => page.capabilities, options);
  }

  // Policies

  /**
   * What would be decided in the caller's namespace, and why; nothing is remembered of it. `principal` is a SPIFFE id, the
   * caller's own by default. A fact that is not given is the least there is.
   */
  async checkPolicy(
    action: string,
    resource = "",
    options: {
      principal?: string;
      resourceKind?: string;
      facts?: Readonly<Record<string, string | readonly string[]>>;
    } & CallTimes = {},
  ): Promise<DecisionRecord> {
    const request = CheckRequest.fromPartial({
      principal: options.principal ?? "",
      action,
      resourceKind: options.resourceKind ?? "",
      resourceId: resource,
      facts: Object.entries(options.facts ?? {}).map(([name, values]) => ({
        name,
        values: typeof values === "string" ? [values] : [...values],
      })),
    });
    return there((await this.ask(PolicyServiceService.check, request, options)).decision);
  }

  /** The kept sets of policies without their files, the newest first. */
  listPolicies(options: PageOptions = {}): AsyncGenerator<PolicySet, void> {
    const request = ListPoliciesRequest.fromPartial({ pageSize: options.pageSize ?? 0 });
    return this.pages(PolicyServiceService.listPolicies, request, (page) => page.policies, options);
  }

  /** A set of policies with its files, by default the one in force. Throws POLICY_EPOCH_NOT_FOUND. */
  async getPolicy(epoch = 0, times?: CallTimes): Promise<PolicySet> {
    const request = GetPolicyRequest.fromPartial({ epoch });
    return there((await this.ask(PolicyServiceService.getPolicy, request, times)).policy);
  }

  /** Recent decisions about the caller's namespace, the newest first, those that fit all filters. */
  listDecisions(
    filter: { principal?: string; action?: string; allowed?: boolean; decisionId?: string } & PageOptions = {},
  ): AsyncGenerator<DecisionRecord, void> {
    const { allowed } = filter;
    const request = ListDecisionsRequest.fromPartial({
      principal: filter.principal ?? "",
      action: filter.action ?? "",
      outcome:
        allowed === undefined ? DecisionOutcome.UNSPECIFIED : allowed ? DecisionOutcome.ALLOW : DecisionOutcome.DENY,
      decisionId: filter.decisionId ?? "",
      pageSize: filter.pageSize ?? 0,
    });
    return this.pages(PolicyServiceService.listDecisions, request, (page) => page.decisions, filter);
  }

  // How

  /** In steps, each a call with a deadline of its own: the same request id is the same run, however often. */
  /** The error of a caller that waits no longer, with the run that goes on: the same request id is the same run. */
  async #named(request: SubmitRunRequest, late: AntiphonError, timeout: number): Promise<AntiphonError> {
    try {
      const committed = await this.ask(RunServiceService.submitRun, { ...request, wait: false }, { timeout: ASIDE });
      const { runId } = there(committed.run);
      const text = `run ${runId} has not ended within ${String(timeout)} ms`;
      return errorOf("DEADLINE_EXCEEDED", text, { metadata: { run_id: runId } });
    } catch (error) {
      if (error instanceof AntiphonError) return late; // nobody knows whether it was committed
      throw error;
    }
  }

  async #submitAndWait(request: SubmitRunRequest, times: CallTimes): Promise<Run> {
    const headers = metadata();
    return await limited(times, "the run has not ended", async (signal) => {
      const tries = new Tries(this.connection, this.patience, Infinity, signal);
      for (;;) {
        const generation = tries.take();
        try {
          return there((await once(generation, RunServiceService.submitRun, request, headers, WAIT_STEP, signal)).run);
        } catch (error) {
          signal?.throwIfAborted(); // its reason may be a DEADLINE_EXCEEDED, too, and that one is the end
          if (!(error instanceof AntiphonError)) throw error;
          // The server is there, and the run goes on.
          if (error.reason === "DEADLINE_EXCEEDED") tries.heard();
          else await tries.after(error, generation);
        } finally {
          tries.giveBack(generation);
        }
      }
    });
  }

  async *#watch(
    runId: string,
    options: {
      cursor?: number;
      includeProgress?: boolean;
      includePartials?: boolean;
      signal?: AbortSignal | undefined;
    },
  ): AsyncGenerator<WatchRunResponse, void> {
    const { cursor = 0, includeProgress = false, includePartials = false, signal } = options;
    const request = WatchRunRequest.fromPartial({ runId, cursor, includeProgress, includePartials });
    for await (const message of this.stream(RunServiceService.watchRun, () => request, signal)) {
      // Progress and pieces have no place in the history, hence no number.
      request.cursor = Math.max(request.cursor, ...message.events.map((event) => event.eventSeq));
      yield message;
    }
  }
}

/** What a run answered, as the JSON value it is. Throws `RunFailed` for a run that did not succeed. */
export function outputOf(run: Run): unknown {
  if (run.state !== RunState.SUCCEEDED) {
    const state = (RunState[run.state] as string | undefined) ?? String(run.state);
    const failure = run.failure ?? FailureMessage.fromPartial({});
    throw new RunFailed(`run ${run.runId} is ${state}${failure.message === "" ? "" : `: ${failure.message}`}`, failure);
  }
  return valueOf(run.output);
}

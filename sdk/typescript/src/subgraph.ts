/** What a handler returns that takes its task apart. */
import { invalidOutput } from "./failures.js";
import { Subgraph as SubgraphMessage } from "./gen/antiphon/v1/agent_service.js";
import { type Graph as GraphMessage } from "./gen/antiphon/v1/graph.js";
import { Graph } from "./graph.js";
import { travelling } from "./payload.js";

/** What a graph that a handler returns may have in bytes, as the contract has it. */
const GRAPH_LIMIT = 256 << 10;

/**
 * A graph that runs beneath a task in place of an output.
 *
 *     agent.capability("report.write@1", { output: { type: "string" } }, (question: string) => {
 *       const graph = new Graph("answer", { output: ref("tasks.text.output") });
 *       const found = graph.task("find", "web.search@1", { input: ref("input") });
 *       graph.task("text", "text.summarize@1", { input: found });
 *       return new Subgraph(graph, question);
 *     });
 *
 * Its output is the task's, and has to fit what the handler promises to return; its failure is the task's. A graph with mistakes
 * fails the attempt and names each; at most 256 KiB.
 */
export class Subgraph {
  /** `input` is what the graph's expressions know as `input`: anything JSON can hold, or a `Payload`; nothing by default. */
  constructor(
    readonly graph: Graph | GraphMessage,
    readonly input?: unknown,
  ) {}
}

/** The graph as a message; `limit` is the largest inline payload in bytes. Throws an INVALID_OUTPUT failure. */
export function subgraphOf(given: Subgraph, limit: number): SubgraphMessage {
  const graph = given.graph instanceof Graph ? given.graph.message() : given.graph;
  const message = SubgraphMessage.fromPartial({ graph });
  let size: number;
  try {
    size = SubgraphMessage.encode(message).finish().length; // here, and not in the stream of all attempts, which what cannot be encoded would break
  } catch (error) {
    throw invalidOutput(`the graph cannot travel: ${(error as Error).message}`);
  }
  if (size > GRAPH_LIMIT) throw invalidOutput(`the graph has ${String(size)} bytes, larger than ${String(GRAPH_LIMIT)} bytes`);
  if (given.input !== undefined && given.input !== null) {
    message.input = travelling("the input of the graph", given.input, limit);
  }
  return message;
}

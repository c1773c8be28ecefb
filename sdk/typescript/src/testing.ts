/**
 * A real mesh for users' own tests: `antiphon dev` in a folder of its own, a sidecar for each agent, and the agents themselves in
 * the process of the test.
 *
 *     test("an agent greets", async () => {
 *       await withMesh(async (mesh) => {
 *         await mesh.run(agent);
 *         const run = await mesh.client.submit(graph, { name: "Ada" }, { wait: true });
 *         expect(outputOf(run)).toBe("Hello, Ada!");
 *       });
 *     });
 *
 * It needs the command antiphon on the path (in a checkout: pip install ./sdk/python .). A mesh is ready in about two seconds and takes
 * another one for each agent, so tests may share one: `Mesh.start` before all, `mesh.close` after. Nothing of it outlives the
 * process of the test, even when that is killed.
 */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";

import { type Agent } from "./agent.js";
import { Client } from "./client.js";
import { Credentials } from "./credentials.js";
import { AntiphonError, SetupError } from "./errors.js";
import { type Logger } from "./log.js";

const PATIENCE = 60_000; // in which whatever is started is there, or never will be
const LOOK = 20;
const SERVES = "An orchestrator serves at ";
// Runs a command for as long as its own standard input is open, which is as long as the test's process lives.
const LEASH = '"$@" </dev/null & child=$!; exec >&- 2>&-; read -r _; kill "$child"; wait "$child"';

const silent: Logger = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };
const executed = promisify(execFile);

/** An orchestrator with its store, under the development policy. */
export class Mesh {
  /** The folder of the profiles `default` and `operator`, for programs that find the mesh by `ANTIPHON_HOME`. */
  readonly home: string;
  /** host:port of the orchestrator. */
  readonly address: string;
  /** A client of the mesh. */
  readonly client: Client;
  /** A client that may look after agents. */
  readonly operator: Client;
  readonly #dev: Command;
  readonly #running = new Set<() => Promise<void>>();

  private constructor(home: string, address: string, dev: Command, client: Client, operator: Client) {
    this.home = home;
    this.address = address;
    this.#dev = dev;
    this.client = client;
    this.operator = operator;
  }

  /** A mesh that serves. Rejects with a `SetupError` when the command is not there, or does not start. */
  static async start(): Promise<Mesh> {
    const home = await mkdtemp(join(tmpdir(), "anti-")); // short: the paths of Unix sockets are at most 107 bytes
    const dev = new Command(home, {}, ["dev", "--port", "0", "--data", join(home, "dev")]);
    try {
      const address = (await dev.line(SERVES)).slice(SERVES.length).split(";", 1)[0] ?? "";
      const [client, operator] = await Promise.all([connect(home, address, "default"), connect(home, address, "operator")]);
      return new Mesh(home, address, dev, client, operator);
    } catch (error) {
      await dev.end();
      await rm(home, { recursive: true });
      throw error;
    }
  }

  /**
   * Have an agent work in this process, behind a sidecar of its own, until the mesh is closed or `stop`, which is the answer, is
   * called: it drains the agent, as SIGTERM does. Resolves once the agent gets work.
   */
  async run(agent: Agent): Promise<() => Promise<void>> {
    const { name } = agent;
    const folder = await mkdtemp(join(this.home, "s"));
    const config = join(folder, "sidecar.toml");
    await writeFile(config, `[[agent]]\nname = "${name}"\n`);
    const sidecar = new Command(this.home, { ANTIPHON_TOKEN: await this.#token(name, folder) }, [
      ...["sidecar", "run", "--config", config, "--state", join(folder, "state"), "--run-folder", folder],
    ]);
    const drain = new AbortController();
    const life = agent.serve({ socket: join(folder, `${name}.sock`), drain: drain.signal });
    life.catch(() => undefined); // told by whoever waits for it
    const stop = async (): Promise<void> => {
      if (!this.#running.delete(stop)) return;
      drain.abort();
      try {
        await life;
      } finally {
        await sidecar.end();
      }
    };
    this.#running.add(stop);
    await Promise.race([this.#attached(name), life, sidecar.failed()]);
    return stop;
  }

  /** End everything, and remove every file. */
  async close(): Promise<void> {
    try {
      await Promise.all([...this.#running].map((stop) => stop()));
    } finally {
      this.client.close();
      this.operator.close();
      await this.#dev.end();
      await rm(this.home, { recursive: true });
    }
  }

  /** `close`, for `await using`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #token(name: string, folder: string): Promise<string> {
    const id = `${name}-${folder.slice(-6).toLowerCase()}`;
    const words = ["--kind", "sidecar", "--name", id, "--agent", name, "--capability", "*"];
    const env = { ...process.env, ANTIPHON_HOME: this.home };
    const made = await executed("antiphon", ["certs", "token", "--profile", "operator", ...words], { env, timeout: PATIENCE });
    return made.stdout.trim();
  }

  /** Resolves once an agent has a place for work. */
  async #attached(name: string): Promise<void> {
    for (const end = Date.now() + PATIENCE; Date.now() < end; ) {
      try {
        const { instances } = await this.client.getAgent(name);
        if (instances.some(({ slots }) => slots > 0)) return;
      } catch (error) {
        if (!(error instanceof AntiphonError) || error.reason !== "AGENT_NOT_FOUND") throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, LOOK));
    }
    throw new SetupError(`agent ${name} was not given a place for work within ${String(PATIENCE)} ms`);
  }
}

/** Do something with a mesh of its own, which ends with it. */
export async function withMesh<Result>(work: (mesh: Mesh) => Promise<Result>): Promise<Result> {
  const mesh = await Mesh.start();
  try {
    return await work(mesh);
  } finally {
    await mesh.close();
  }
}

async function connect(home: string, address: string, profile: string): Promise<Client> {
  const credentials = Credentials.fromFolder(join(home, "profiles", profile, "credential"));
  return await Client.connect({ address, credentials, logger: silent });
}

/** A command of antiphon that runs until it is ended. */
class Command {
  readonly #what: string;
  readonly #process: ChildProcess;
  readonly #over: Promise<void>;
  readonly #lines: string[] = [];
  #said = "";
  #stir = (): void => undefined;

  constructor(home: string, environ: Record<string, string>, words: string[]) {
    this.#what = `antiphon ${words[0] ?? ""}`;
    const env = { ...process.env, ...environ, ANTIPHON_HOME: home };
    this.#process = spawn("sh", ["-c", LEASH, "sh", "antiphon", ...words], { env, stdio: ["pipe", "pipe", "pipe"] });
    const { stdout, stderr } = this.#process;
    // The shell has closed its own: the end of the output is the end of the command.
    this.#over = new Promise((resolve) => stdout?.on("close", resolve));
    if (stdout !== null) {
      createInterface({ input: stdout }).on("line", (line) => {
        this.#lines.push(line);
        this.#stir();
      });
    }
    stderr?.on("data", (data: Buffer) => { this.#said = (this.#said + data.toString()).slice(-10_000); });
  }

  /** The first line that begins so. Rejects with a `SetupError` when the command ends before, or says nothing in time. */
  async line(beginning: string): Promise<string> {
    const found = new Promise<string>((resolve) => {
      this.#stir = () => {
        const line = this.#lines.find((one) => one.startsWith(beginning));
        if (line !== undefined) resolve(line);
      };
    });
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_resolve, reject) => {
      const why = `${this.#what} did not say within ${String(PATIENCE)} ms: ${beginning}`;
      timer = setTimeout(() => { reject(new SetupError(why)); }, PATIENCE);
    });
    try {
      return await Promise.race([found, late, this.failed()]);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Rejects when the command ends by itself. */
  async failed(): Promise<never> {
    await this.#over;
    throw new SetupError(`${this.#what} has ended: ${this.#said.trim() || "in a checkout of Antiphon, run: pip install ./sdk/python ."}`);
  }

  /** End it, and wait for its end. */
  async end(): Promise<void> {
    this.#process.stdin?.end();
    await this.#over;
  }
}

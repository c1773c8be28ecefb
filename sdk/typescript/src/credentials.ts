/**
 * Where a client finds its certificate and its orchestrators: the same profiles as the `antiphon` command. Writes nothing.
 *
 * A profile is the folder `$ANTIPHON_HOME/profiles/NAME` (`~/.antiphon` without the variable; NAME from
 * `ANTIPHON_PROFILE`, else `default`) with `profile.toml` (`addresses`: a list of host:port) and the folder `credential`,
 * in which the symbolic link `current` points to a generation: a folder that never changes, with `key.pem`, `cert.pem`
 * (leaf first) and `bundle.pem`. Every orchestrator's certificate holds `SERVER_NAME`.
 */
import { readFile, readlink } from "node:fs/promises";
import { homedir } from "node:os";
import { join } from "node:path";

import { parse } from "smol-toml";

import { SetupError } from "./errors.js";

/** The DNS name every orchestrator shows, whatever address it was dialled at. */
export const SERVER_NAME = "orchestrator.antiphon.internal";

const NAME = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/;
const ADDRESS = /^(?:unix:.+|(?:\[[^\s[\]]+\]|[^\s:/,@[\]]+):([0-9]{1,5}))$/;
const JOIN = "run: antiphon dev  or  antiphon certs join TOKEN";

/** A key, its certificate chain and the roots to trust, as they were at one moment. */
export interface Pem {
  readonly key: Buffer;
  readonly chain: Buffer;
  readonly bundle: Buffer;
}

/** Three PEM files that may change while they are used: a client looks again every few seconds. */
export class Credentials {
  readonly #find: () => Promise<readonly [key: string, chain: string, bundle: string]>;

  private constructor(find: () => Promise<readonly [string, string, string]>) {
    this.#find = find;
  }

  /** Certificate chain (leaf first), private key, and the roots to trust. */
  static fromFiles(files: { cert: string; key: string; bundle: string }): Credentials {
    return new Credentials(() => Promise.resolve([files.key, files.cert, files.bundle]));
  }

  /** A credential folder as `antiphon certs` writes it, such as that of a profile. */
  static fromFolder(folder: string): Credentials {
    return new Credentials(async () => {
      // The link once, so that key and certificate are of one generation whatever happens meanwhile.
      const generation = join(folder, await readlink(join(folder, "current")));
      return [join(generation, "key.pem"), join(generation, "cert.pem"), join(generation, "bundle.pem")];
    });
  }

  /** What the files hold now. Rejects with a `SetupError`, for one that holds no PEM (yet) as well. */
  async read(): Promise<Pem> {
    try {
      const [key, chain, bundle] = await this.#find();
      return { key: await content(key), chain: await content(chain), bundle: await content(bundle) };
    } catch (error) {
      if (error instanceof SetupError) throw error;
      const { code, path = "" } = error as NodeJS.ErrnoException;
      if (code === "ENOENT") throw new SetupError(`there is no certificate: ${path} does not exist; ${JOIN}`);
      throw new SetupError(`the certificate cannot be read: ${(error as Error).message}`, error);
    }
  }
}

async function content(path: string): Promise<Buffer> {
  const pem = await readFile(path);
  if (!pem.includes("-----BEGIN ")) throw new SetupError(`the certificate cannot be used: ${path} holds no PEM; ${JOIN}`);
  return pem;
}

/** Throws a `SetupError` for one that no orchestrator can be at: it would be dialled until a deadline passes. */
export function checkAddresses(addresses: readonly string[]): void {
  for (const address of addresses) {
    const found = ADDRESS.exec(address);
    const port = Number(found?.[1] ?? 1);
    if (found === null || port < 1 || port > 65_535) {
      throw new SetupError(
        `${JSON.stringify(address.slice(0, 200))} is not the address of an orchestrator: write host:port, without a scheme, ` +
          "such as mesh.example:7443 or [::1]:7443",
      );
    }
  }
}

/** Whom to dial, as whom. */
export interface Profile {
  readonly addresses: readonly string[];
  readonly credentials: Credentials;
}

/** The named profile, or the one the environment chooses. Rejects with a `SetupError` that has its remedy. */
export async function loadProfile(given?: string, environ: NodeJS.ProcessEnv = process.env): Promise<Profile> {
  const name = given ?? set(environ, "ANTIPHON_PROFILE") ?? "default";
  if (!NAME.test(name)) {
    throw new SetupError(`profile '${name.slice(0, 80)}' must be 1-63 lowercase letters, digits and inner hyphens`);
  }
  const profiles = join(set(environ, "ANTIPHON_HOME") ?? join(homedir(), ".antiphon"), "profiles");
  const path = join(profiles, name, "profile.toml");
  let addresses: unknown;
  try {
    ({ addresses } = parse(await readFile(path, "utf8")));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") {
      throw new SetupError(`there is no profile '${name}' in ${profiles}; ${JOIN}`);
    }
    throw new SetupError(`${path} is not a profile: ${(error as Error).message}; mend it, or ${JOIN}`, error);
  }
  if (!isAddresses(addresses)) {
    throw new SetupError(`${path} is not a profile: 'addresses' must be a list of host:port; mend it, or ${JOIN}`);
  }
  return { addresses, credentials: Credentials.fromFolder(join(profiles, name, "credential")) };
}

/** A variable of the environment; an empty one is none. */
function set(environ: NodeJS.ProcessEnv, name: string): string | undefined {
  const value = environ[name];
  return value === "" ? undefined : value;
}

function isAddresses(value: unknown): value is string[] {
  return Array.isArray(value) && value.length > 0 && value.every((one) => typeof one === "string");
}

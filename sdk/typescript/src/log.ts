/** Where agents and clients say what happens to them: anything with the four methods of `console`. */

/** A logger; `console` is one. `fields` are ids, never payloads. */
export interface Logger {
  debug(message: string, fields?: Readonly<Record<string, unknown>>): void;
  info(message: string, fields?: Readonly<Record<string, unknown>>): void;
  warn(message: string, fields?: Readonly<Record<string, unknown>>): void;
  error(message: string, fields?: Readonly<Record<string, unknown>>): void;
}

/** One line each on standard error, from info on. */
export const stderrLogger: Logger = {
  debug: () => undefined,
  info: (message, fields) => { write("INFO", message, fields); },
  warn: (message, fields) => { write("WARNING", message, fields); },
  error: (message, fields) => { write("ERROR", message, fields); },
};

/** A logger that adds `fields` to every line, and the attempt to its text. */
export function taskLogger(to: Logger, attemptId: string, own: Readonly<Record<string, unknown>>): Logger {
  const say =
    (level: keyof Logger): Logger["info"] =>
    (message, fields) => {
      to[level](`[${attemptId}] ${message}`, { ...own, ...fields });
    };
  return { debug: say("debug"), info: say("info"), warn: say("warn"), error: say("error") };
}

function write(level: string, message: string, fields: Readonly<Record<string, unknown>> = {}): void {
  const more = Object.entries(fields).map(([name, value]) => ` ${name}=${JSON.stringify(value)}`);
  process.stderr.write(`${new Date().toISOString()} ${level} antiphon ${message}${more.join("")}\n`);
}

/**
 * JSON Schemas: the TypeScript type of the values that one describes, and the check that a value fits.
 *
 * The types cover what people write by hand (types, enums, constants, alternatives, arrays, objects); whatever they do
 * not know is `unknown`, never something wrong.
 */
import { Ajv2020, type ErrorObject, type ValidateFunction } from "ajv/dist/2020.js";

/** A JSON Schema, draft 2020-12. */
export type JsonSchema = boolean | { readonly [keyword: string]: unknown };

/** The type of the values that a schema describes. */
export type FromSchema<S> = S extends { readonly const: infer Value }
  ? Value
  : S extends { readonly enum: readonly (infer Value)[] }
    ? Value
    : S extends { readonly anyOf: readonly (infer Part)[] } | { readonly oneOf: readonly (infer Part)[] }
      ? FromSchema<Part>
      : S extends { readonly type: readonly (infer Type)[] }
        ? OfType<Type, S>
        : S extends { readonly type: infer Type }
          ? OfType<Type, S>
          : unknown;

interface Simple {
  string: string;
  number: number;
  integer: number;
  boolean: boolean;
  null: null;
}

type OfType<Type, S> = Type extends keyof Simple
  ? Simple[Type]
  : Type extends "array"
    ? S extends { readonly items: infer Item }
      ? FromSchema<Item>[]
      : unknown[]
    : Type extends "object"
      ? S extends { readonly properties: infer Properties }
        ? Plain<
            { -readonly [Key in keyof Properties as Key extends Required<S> ? Key : never]: FromSchema<Properties[Key]> } & {
              -readonly [Key in keyof Properties as Key extends Required<S> ? never : Key]?: FromSchema<Properties[Key]>;
            }
          >
        : Record<string, unknown>
      : unknown;

type Required<S> = S extends { readonly required: readonly (infer Name)[] } ? Name : never;
type Plain<T> = { [Key in keyof T]: T[Key] };

/** What does not fit, without the value: JSON pointer of the part at fault, and what was expected. */
export interface Mismatch {
  field: string;
  message: string;
}

// Vocabulary of others, such as x-antiphon-labels, is theirs to judge; formats are annotations, as the draft has it.
const ajv = new Ajv2020({ strict: false, validateFormats: false, addUsedSchema: false });

/** Whether a value fits. */
export type Check = (value: unknown) => Mismatch | undefined;

const checks = new WeakMap<object, Check>();

/**
 * A check of values. Throws an `Error` for a schema that is none, or refers to something outside of itself. Compiling takes
 * milliseconds, once for each object: keep schemas as constants.
 */
export function checkOf(schema: JsonSchema): Check {
  if (typeof schema === "boolean") return compiled(schema);
  const known = checks.get(schema) ?? compiled(schema);
  checks.set(schema, known);
  return known;
}

function compiled(schema: JsonSchema): Check {
  try {
    const validate: ValidateFunction = ajv.compile(schema);
    return (value) => (validate(value) ? undefined : mismatchOf(validate.errors?.[0]));
  } finally {
    if (typeof schema !== "boolean") ajv.removeSchema(schema); // its own memory has no bound
  }
}

function mismatchOf(error: ErrorObject | undefined): Mismatch {
  return { field: error?.instancePath ?? "", message: error?.message ?? "does not fit the schema" };
}

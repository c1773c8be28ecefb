/** The messages, enumerations and service definitions of `antiphon.v1`, as the contracts document them. */
export * from "./gen/v1.js";

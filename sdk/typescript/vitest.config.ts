import { defineConfig } from "vitest/config";

export default defineConfig({
  // Generous: a state that has not come about by then never will, on a machine under load as well.
  test: { include: ["test/*.test.ts"], testTimeout: 60_000, hookTimeout: 60_000 },
});

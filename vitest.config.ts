import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

const dist = (name: string) => fileURLToPath(new URL(`dist/${name}`, import.meta.url));

export default defineConfig({
  resolve: {
    // The built package, as its users load it.
    alias: [
      { find: /^evenkeel$/, replacement: dist("index.js") },
      { find: /^evenkeel\/node$/, replacement: dist("node.js") },
    ],
  },
  test: {
    include: ["test/**/*.test.ts"],
    testTimeout: 30_000,
    // Node loads the bundles itself: nothing is transformed, and both share one copy of index.js.
    server: { deps: { external: [/\/dist\//] } },
  },
});

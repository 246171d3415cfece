// `npm run format`: biome and rustfmt write the one format that `npm test` accepts.
import { join } from "node:path";
import { main, must, Stop } from "./process.mjs";
import { findLinter, root } from "./toolchain.mjs";

await main(async () => {
  await must(process.execPath, [
    join(root, "node_modules", "@biomejs", "biome", "bin", "biome"),
    "check",
    "--write",
    ".",
  ]);
  const linter = findLinter();
  if (!linter) throw new Stop("rustfmt is missing; run: node scripts/setup.mjs --test");
  await must(linter.format, ["fmt", "--all"], { env: linter.env });
});

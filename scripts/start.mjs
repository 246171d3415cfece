// `npm start`: set-up, build, and the main job.
import { join } from "node:path";
import { main, run } from "./process.mjs";
import { setup } from "./setup.mjs";
import { root } from "./toolchain.mjs";

await main(async () => {
  await setup();
  // Not before the set-up: its packages may not have been there.
  const { build } = await import("./build.mjs");
  await build();
  const cli = join(root, "dist", "cli.js");
  const { code } = await run(process.execPath, [cli, "train", ...process.argv.slice(2)], { show: "terminal" });
  return code;
});

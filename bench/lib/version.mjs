import { readFileSync } from "node:fs";

/** A package's name with its version, from bench/node_modules. @param {string} name */
export function versioned(name) {
  const file = new URL(`../node_modules/${name}/package.json`, import.meta.url);
  return `${name} ${JSON.parse(readFileSync(file, "utf8")).version}`;
}

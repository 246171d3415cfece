// A vitest reporter that leaves the counts, and what was skipped and why, in the file that EVENKEEL_COUNTS names.
import { writeFileSync } from "node:fs";

export default class Counts {
  /**
   * @param {readonly import("vitest/node").TestModule[]} modules
   * @param {readonly unknown[]} unhandledErrors
   */
  onTestRunEnd(modules, unhandledErrors) {
    let passed = 0;
    // Errors outside of a test: in a file's top level, in a beforeAll, in a callback that nobody waited for.
    let failed = unhandledErrors.length;
    const skipped = [];
    for (const module of modules) {
      failed += module.errors().length > 0 ? 1 : 0;
      for (const suite of module.children.allSuites()) failed += suite.errors().length > 0 ? 1 : 0;
      for (const test of module.children.allTests()) {
        const result = test.result();
        if (result.state === "passed") passed++;
        else if (result.state === "failed") failed++;
        else {
          const reason = (result.state === "skipped" && result.note) || `marked ${test.options.mode} without a reason`;
          skipped.push(`${module.relativeModuleId} > ${test.fullName}: ${reason}`);
        }
      }
    }
    writeFileSync(process.env.EVENKEEL_COUNTS ?? "", JSON.stringify({ passed, failed, skipped }));
  }
}

const EXIT_CODES = { SIGINT: 130, SIGTERM: 143 } as const;
const REPEAT_MS = 1000;

export interface Interrupt {
  /** Aborted by the first Ctrl-C or SIGTERM. */
  readonly signal: AbortSignal;
  /** What the process should exit with once interrupted. */
  readonly exitCode: number;
}

/** Lets a command end in its own time; a second Ctrl-C ends the process at once. */
export function onInterrupt(): Interrupt {
  const controller = new AbortController();
  let exitCode = 0;
  let first = 0;
  for (const name of ["SIGINT", "SIGTERM"] as const) {
    process.on(name, () => {
      if (!controller.signal.aborted) {
        first = performance.now();
        exitCode = EXIT_CODES[name];
        controller.abort();
      } else if (performance.now() - first > REPEAT_MS) {
        // Within the second it is an echo: npm repeats to its child what the terminal told both.
        process.exit(exitCode);
      }
    });
  }
  return {
    signal: controller.signal,
    get exitCode() {
      return exitCode;
    },
  };
}

// A frame at 60 Hz has 16.7 ms: after this much work the event loop gets its turn.
const WORK_MS = 12;

/** Lets the event loop run between pieces of work, so that pages repaint and signals arrive. */
export class Breather {
  #since = performance.now();

  /** Whether the work since the last wait has taken long enough for another one. */
  get due(): boolean {
    return performance.now() - this.#since >= WORK_MS;
  }

  /** Waits for the event loop if that is due. */
  async breathe(): Promise<void> {
    if (!this.due) return;
    await nextTask();
    this.#since = performance.now();
  }
}

interface TaskQueues {
  readonly setImmediate?: (task: () => void) => void;
}

/** A macrotask later. Timers would wait at least 4 ms in browsers. */
function nextTask(): Promise<void> {
  const { setImmediate }: TaskQueues = globalThis;
  if (setImmediate !== undefined) return new Promise((resolve) => setImmediate(() => resolve()));
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

import type { BatchLogs, Callback, EpochLogs, HealthWarning } from "../index.js";
import type { Display } from "./display.js";

const REDRAW_MS = 100;
const PLAIN_MS = 10_000;
const BAR = 30;

export interface EpochRecord {
  loss: number;
  accuracy: number;
  valLoss: number;
  valAccuracy: number;
  seconds: number;
  samplesPerSecond: number;
}

/** Shows a training run on `display` and keeps one record an epoch. */
export class Progress implements Callback {
  readonly records: EpochRecord[] = [];
  /** Steps finished since training began. */
  steps = 0;

  readonly #display: Display;
  #epochs = 0;
  #samples = 0;
  #seen = 0;
  #epochStart = 0;
  #lastOutput = 0;
  #validationSeconds = 0;

  constructor(display: Display) {
    this.#display = display;
  }

  onTrainBegin(info: { epochs: number; samples: number }): void {
    this.#epochs = info.epochs;
    this.#samples = info.samples;
    const head = `${this.#column("epoch")}    loss  accuracy  val loss  val accuracy     time  samples/s`;
    this.#display.line(this.#display.paint("dim", head));
  }

  onEpochBegin(): void {
    this.#seen = 0;
    this.#epochStart = this.#lastOutput = performance.now();
  }

  onBatchEnd(logs: BatchLogs): void {
    this.steps++;
    this.#seen += logs.size;
    const now = performance.now();
    const { live } = this.#display;
    const last = logs.step === logs.steps;
    // Plain output gets a line every ten seconds at most, and the epoch's own line at its end.
    if (live ? now - this.#lastOutput < REDRAW_MS && !last : now - this.#lastOutput < PLAIN_MS || last) return;
    this.#lastOutput = now;
    const rate = (1000 * this.#seen) / (now - this.#epochStart);
    const figures = `loss ${logs.loss.toFixed(4)}  accuracy ${logs.accuracy?.toFixed(4)}  ${whole(rate)} samples/s`;
    const left = `${duration(this.#secondsLeft(logs.epoch, rate))} left`;
    if (live) this.#drawStatus(logs, `${figures}  ${left}`);
    else this.#display.line(`       step ${logs.step}/${logs.steps}  ${figures}  ${left}`);
  }

  onEpochEnd(epoch: number, logs: EpochLogs): void {
    const { loss, accuracy = NaN, valLoss = NaN, valAccuracy = NaN, seconds, samplesPerSecond } = logs;
    this.records.push({ loss, accuracy, valLoss, valAccuracy, seconds, samplesPerSecond });
    this.#validationSeconds = (performance.now() - this.#epochStart) / 1000 - seconds;
    this.#display.line(
      [
        this.#column(`${epoch + 1}/${this.#epochs}`),
        loss.toFixed(4).padStart(8),
        accuracy.toFixed(4).padStart(10),
        valLoss.toFixed(4).padStart(10),
        valAccuracy.toFixed(4).padStart(14),
        `${seconds.toFixed(1)} s`.padStart(9),
        whole(samplesPerSecond).padStart(11),
      ].join(""),
    );
  }

  onWarning({ message }: HealthWarning): void {
    this.#display.line(message);
  }

  #column(text: string): string {
    return text.padStart(Math.max(5, 2 * `${this.#epochs}`.length + 1));
  }

  #secondsLeft(epoch: number, rate: number): number {
    const epochs = this.#epochs - epoch;
    return (epochs * this.#samples - this.#seen) / rate + epochs * this.#validationSeconds;
  }

  #drawStatus({ epoch, step, steps }: BatchLogs, figures: string): void {
    const { paint, columns, status } = this.#display;
    const head = `epoch ${epoch + 1}/${this.#epochs}  `;
    const tail = `  ${step}/${steps}`;
    const width = Math.max(0, Math.min(BAR, columns - 1 - head.length - tail.length));
    const done = Math.floor((width * step) / steps);
    const bar = paint("cyan", "━".repeat(done)) + paint("dim", "─".repeat(width - done));
    const text = step === steps ? "validating on the test images …" : figures;
    status([head + bar + tail, text.slice(0, columns - 1)]);
  }
}

/** 60000 → "60,000". */
export function whole(value: number): string {
  return Math.round(value).toLocaleString("en-US");
}

function duration(seconds: number): string {
  const total = Math.ceil(seconds);
  const [h, m, s] = [Math.floor(total / 3600), Math.floor(total / 60) % 60, total % 60];
  const two = (part: number) => String(part).padStart(2, "0");
  return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

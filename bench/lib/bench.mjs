// Measuring in turns: A B C A B C …, so that a machine whose speed drifts does so under everyone.
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { readFloats, writeJob } from "./job.mjs";
import { limitsModule } from "./limits.mjs";
import { Peer, PeerError } from "./peer.mjs";
import { median, relativeDifference } from "./statistics.mjs";

const limits = fileURLToPath(new URL("limits.mjs", import.meta.url));
export const OURS = "evenkeel";

/**
 * @typedef {object} Target held against the ratio of the other's time to ours
 * @property {string} peer
 * @property {number} atLeast
 * @property {string} text as the goal was put
 *
 * @typedef {object} Row
 * @property {string} peer
 * @property {string} title
 * @property {number} [median] milliseconds
 * @property {number} [best]
 * @property {number} [runs]
 * @property {number} [ratio] their median to ours
 * @property {number} [bestRatio] their best to ours
 * @property {Target} [target]
 * @property {number} [difference] the largest of an answer from ours, as a share of our largest value
 * @property {string} [note]
 * @property {string} [error]
 *
 * @typedef {{ readonly workload: string, readonly name: string, readonly rows: Row[] }} Result
 *
 * @typedef {object} Work
 * @property {string} name
 * @property {import("./job.mjs").Job} job
 * @property {number} [tolerance] of an answer's difference from ours
 * @property {number} [compared] how many runs in a row are compared, default 1
 * @property {readonly Target[]} [targets]
 * @property {readonly import("./job.mjs").LimitJob[]} [limits] timed beside the peers
 * @property {readonly string[]} [without] peers that are left out, and are shown so
 */

/** What is spent on a measurement. */
const FULL = { rounds: 40, turn: 25, budget: 2500, starts: 7 };
const QUICK = { rounds: 3, turn: 2, budget: 100, starts: 1 };

export class Bench {
  /** @type {Result[]} */
  results = [];

  /**
   * @param {object} options
   * @param {readonly string[]} options.files of the peers, ourselves among them
   * @param {string} [options.python]
   * @param {boolean} options.quick
   * @param {(line: string) => void} options.say
   * @param {(result: Result) => void} options.onResult
   */
  constructor({ files, python, quick, say, onResult }) {
    this.files = [...files].sort((a, b) => Number(isOurs(b)) - Number(isOurs(a)));
    this.python = python;
    this.quick = quick;
    this.effort = quick ? QUICK : FULL;
    this.say = say;
    this.onResult = onResult;
    /** @type {Map<string, Peer>} */
    this.peers = new Map();
  }

  /** Every peer at one piece of work. @param {string} workload @param {Work} work @returns {Promise<Result>} */
  async compare(workload, work) {
    const contestants = [];
    /** @type {Record<string, Float32Array>[]} */
    const ours = [];
    for (const file of this.files) {
      const contestant = new Contestant(await this.open(file));
      contestants.push(contestant);
      if (work.without?.includes(contestant.peer.id)) contestant.row.error = "left out: it would take minutes";
      else await contestant.prepare(work, ours);
    }
    for (const job of work.limits ?? []) {
      const contestant = new Contestant(new Peer(limits), `${job.kind} inside wasm`, job.kind);
      contestants.push(contestant);
      await contestant.prepare({ name: job.kind, job: { ...job, wasm: await limitsModule() } }, []);
    }
    await this.takeTurns(contestants.filter(({ row }) => row.error === undefined));
    for (const { peer } of contestants) if (!this.peers.has(peer.id)) peer.close();
    return this.finish(workload, work.name, contestants, work.targets ?? []);
  }

  /** @param {readonly Contestant[]} contestants */
  async takeTurns(contestants) {
    const { rounds, turn, budget } = this.effort;
    for (let round = 0; round < rounds; round++) {
      for (const contestant of contestants) {
        if (contestant.spent < budget || contestant.times.length === 0) await contestant.turn(turn);
      }
    }
  }

  /**
   * Time from the import of each library to its first result, each in fresh processes.
   * @param {string} workload @param {Work} work
   */
  async start(workload, work) {
    const { folder, remove } = writeJob(work.job);
    const contestants = [];
    for (const file of this.files) contestants.push(new Contestant(await this.open(file)));
    for (let round = 0; round < this.effort.starts; round++) {
      for (const [i, contestant] of contestants.entries()) {
        if (contestant.row.error !== undefined) continue;
        const peer = new Peer(this.files[i], this.python);
        await contestant.attempt(async () => {
          contestant.times.push((await peer.ask("start", { folder })).milliseconds);
        });
        peer.close();
      }
    }
    remove();
    return this.finish(workload, work.name, contestants, work.targets ?? []);
  }

  /**
   * Ourselves in two ways, each in a process of its own: ratios are of the first one's time. The same bits are demanded.
   * @param {string} workload @param {string} name @param {readonly { title: string, job: import("./job.mjs").Job }[]} ways
   * @param {readonly Target[]} targets of which the peer is a title
   */
  async variants(workload, name, ways, targets) {
    /** @type {Record<string, Float32Array>[]} */
    const ours = [];
    const contestants = [];
    for (const { title, job } of ways) {
      const contestant = new Contestant(new Peer(this.files[0]), title, title);
      contestants.push(contestant);
      await contestant.prepare({ name, job, compared: 2 }, ours);
    }
    await this.takeTurns(contestants.filter(({ row }) => row.error === undefined));
    for (const { peer } of contestants) peer.close();
    return this.finish(workload, name, contestants, targets);
  }

  /** Ourselves alone, the best of many. @param {import("./job.mjs").Job} job */
  async own(job) {
    const contestant = new Contestant(await this.open(this.files[0]));
    await contestant.prepare({ name: "", job }, []);
    await this.takeTurns([contestant]);
    if (contestant.row.error !== undefined) throw new PeerError(contestant.row.error);
    return Math.min(...contestant.times);
  }

  /** @param {string} workload @param {string} name @param {readonly Contestant[]} contestants @param {readonly Target[]} targets */
  finish(workload, name, contestants, targets) {
    const rows = contestants.map((contestant) => contestant.measured());
    const [ours] = rows;
    for (const row of rows.slice(1)) {
      row.target = targets.find(({ peer }) => peer === row.peer);
      if (row.median === undefined || ours.median === undefined) continue;
      row.ratio = row.median / ours.median;
      row.bestRatio = Number(row.best) / Number(ours.best);
    }
    ours.target = targets.find(({ peer }) => peer === OURS);
    const result = { workload, name, rows };
    this.results.push(result);
    this.onResult(result);
    return result;
  }

  /** A peer's process, kept from one work to the next unless it died. @param {string} file */
  async open(file) {
    const id = basename(file).replace(/\.\w+$/, "");
    const kept = this.peers.get(id);
    if (kept !== undefined && (kept.ended === "" || !kept.opened)) return kept;
    const peer = new Peer(file, this.python);
    this.peers.set(id, peer);
    // One that cannot open says so again when it is asked to work.
    peer.title = await peer.ask("open", {}, 60).then(
      ({ title }) => {
        peer.opened = true;
        return title;
      },
      () => kept?.title ?? id,
    );
    return peer;
  }

  close() {
    for (const peer of this.peers.values()) peer.close();
  }
}

/** A peer at one piece of work. */
class Contestant {
  /** @type {number[]} */
  times = [];
  spent = 0;

  /** @param {Peer} peer @param {string} [title] @param {string} [id] */
  constructor(peer, title = peer.title, id = peer.id) {
    this.peer = peer;
    /** @type {Row} */
    this.row = { peer: id, title };
  }

  /** @param {() => Promise<void>} body */
  async attempt(body) {
    try {
      await body();
    } catch (error) {
      if (!(error instanceof PeerError)) throw error;
      this.row.error = error.message.split("\n")[0].slice(0, 160);
    }
  }

  /**
   * Hands out the work and compares what the peer makes of it with ours; those runs warm it up.
   * @param {Work} work @param {Record<string, Float32Array>[]} ours answers of each run, filled by the first who is asked
   */
  prepare({ job, tolerance = 0, compared = 1 }, ours) {
    const first = ours.length === 0;
    const { folder, remove } = writeJob(job);
    return this.attempt(async () => {
      this.row.note = (await this.peer.ask("prepare", { folder })).note;
      for (let run = 0; run < compared; run++) {
        const { milliseconds } = await this.peer.ask("run", { times: 1 });
        this.milliseconds = milliseconds[0];
        const { names } = await this.peer.ask("answers", { folder });
        const answers = Object.fromEntries(names.map((/** @type {string} */ n) => [n, readFloats(join(folder, n))]));
        if (first) ours.push(answers);
        for (const name of names) {
          const difference = relativeDifference(answers[name], ours[run][name]);
          this.row.difference = Math.max(this.row.difference ?? 0, difference);
          if (!(difference <= tolerance)) {
            throw new PeerError(`its ${name} differs from ours by ${difference.toExponential(1)} of the largest value`);
          }
        }
      }
      // What is slow from the second run on needs no more warming up.
      for (const end = performance.now() + 300; performance.now() < end && this.milliseconds < 300; ) {
        const { milliseconds } = await this.peer.ask("run", { times: 1 });
        this.milliseconds = milliseconds[0];
      }
    }).finally(remove);
  }

  /** Runs for about so many milliseconds. @param {number} length */
  turn(length) {
    return this.attempt(async () => {
      const times = Math.max(1, Math.min(500, Math.floor(length / Math.max(this.milliseconds ?? 0, 1e-3))));
      const { milliseconds } = await this.peer.ask("run", { times });
      this.times.push(...milliseconds);
      this.spent += milliseconds.reduce((/** @type {number} */ a, /** @type {number} */ b) => a + b, 0);
      this.milliseconds = Math.min(...milliseconds);
    });
  }

  /** @returns {Row} */
  measured() {
    if (this.row.error !== undefined || this.times.length === 0) return this.row;
    return { ...this.row, median: median(this.times), best: Math.min(...this.times), runs: this.times.length };
  }
}

/** @param {string} file */
function isOurs(file) {
  return basename(file) === `${OURS}.mjs`;
}

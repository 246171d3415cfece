import { oneOf } from "../runtime/check.js";
import { Adam, type AdamOptions } from "./adam.js";
import type { Optimizer } from "./optimizer.js";
import { Sgd, type SgdOptions } from "./sgd.js";

/** The optimizers by name. */
export const optimizers = {
  /** Adam (Kingma and Ba 2015). */
  adam: (options?: AdamOptions) => new Adam(options),
  /** Stochastic gradient descent, with momentum and Nesterov's form. */
  sgd: (options?: SgdOptions) => new Sgd(options),
};

const NAMES = Object.keys(optimizers) as readonly (keyof typeof optimizers)[];

/**
 * The optimizer of that name with its defaults, or the given one.
 *
 * @throws {NameError} for a name that does not exist.
 */
export function optimizerOf(optimizer: keyof typeof optimizers | Optimizer): Optimizer {
  if (optimizer instanceof Adam || optimizer instanceof Sgd) return optimizer;
  return optimizers[oneOf("optimizer", optimizer, NAMES)]();
}

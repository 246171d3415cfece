// Batch normalization without a model: three sensors of very different scale are made comparable, then scaled and shifted to
// what a loss asks for. From a clone: `npm run build`, then `node examples/batchnorm-only.mjs`.
import { load } from "evenkeel";

// Temperature in kelvin, pressure in pascal, humidity as a share.
const MEAN = [288, 101_325, 0.5];
const DEVIATION = [8, 900, 0.1];
const [samples, sensors] = [64, 3];

let seed = 1;

const ek = await load();
const x = ek.tensor([samples, sensors]);
// The default ε of 1e-3 would show beside a variance of 0.01.
const bn = ek.batchNorm({ features: sensors, momentum: 0.9, epsilon: 1e-6 });

measure();
print("measured", describe(x.data));
print("normalised", describe(bn.forward(x).data));

// Gradient descent on γ and β. The loss ½(y − target)² wants mean 5 and deviation 2 of every sensor.
const dy = ek.tensor(x.shape);
for (let step = 0; step < 100; step++) {
  measure();
  const y = bn.forward(x); // by the batch's statistics; the running ones move
  for (let i = 0; i < y.size; i++) {
    const target = 5 + 2 * ((x.data[i] - MEAN[i % sensors]) / DEVIATION[i % sensors]);
    dy.data[i] = (y.data[i] - target) / samples;
  }
  bn.backward(dy); // returns dx, and fills the gradients of γ and β
  for (const { value, grad } of [bn.gamma, bn.beta]) {
    for (let c = 0; c < sensors; c++) value.data[c] -= 0.1 * grad.data[c];
  }
}
print("γ", format(bn.gamma.value.data));
print("β", format(bn.beta.value.data));
print("running mean", format(bn.runningMean.data));

// Before serving: what evaluation makes of a batch beside what training made of it. 0 is the same, 1 as much as the values.
const { drift, mismatch, valuesPerChannel } = bn.health();
print("health", `mismatch ${mismatch.toFixed(2)}, drift ${drift.toFixed(2)} with ${valuesPerChannel} values a channel`);

// To serve: the running statistics take the batch's place, so a single sample will do.
bn.infer();
const warmer = ek.tensor([1, sensors], [288 + 8, 101_325, 0.4]); // one deviation up, none, one down
print("one sample", format(bn.forward(warmer).data));
ek.dispose();

/** Writes a new batch into x, in place: uniform noise, the same in every run. */
function measure() {
  for (let i = 0; i < x.size; i++) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    const noise = (seed / 2 ** 31 - 1) * Math.sqrt(3); // mean 0, deviation 1
    x.data[i] = MEAN[i % sensors] + DEVIATION[i % sensors] * noise;
  }
}

/** Mean and standard deviation of each sensor. */
function describe(data) {
  return MEAN.map((_, c) => {
    const values = Array.from(data).filter((_, i) => i % sensors === c);
    const average = (numbers) => numbers.reduce((sum, value) => sum + value) / numbers.length;
    const mean = average(values);
    const deviation = Math.sqrt(average(values.map((value) => (value - mean) ** 2)));
    return `${mean.toFixed(2)} ± ${deviation.toFixed(2)}`;
  }).join(", ");
}

function format(data) {
  return Array.from(data, (value) => value.toFixed(2)).join(", ");
}

function print(what, text) {
  console.log(`${what.padEnd(14)}${text}`);
}

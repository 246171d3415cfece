// Ten million values a channel, in rows of two channels: the bounds of docs/batchnorm.md do not grow with n. (One channel, as a
// run, is in batchnorm-numbers.)
import { load } from "evenkeel";
import { expect, test } from "vitest";

const U = 2 ** -23;
const COUNT = 1e7;
/** The second one's mean is a million times its spread. */
const CHANNELS = [
  { mean: 10, spread: 3 },
  { mean: 1e6, spread: 1 },
];

test("y, the statistics and every gradient of ten million rows", async () => {
  const ek = await load();
  const bn = ek.batchNorm({ features: 2, epsilon: 1e-3 });
  bn.gamma?.value.data.set([1.5, -0.5]);
  bn.beta?.value.data.set([0.25, 1]);
  const [x, dy] = [ek.tensor([COUNT, 2]), ek.tensor([COUNT, 2])];
  let state = 1;
  const next = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  };
  const [given, gradient] = [x.data, dy.data];
  for (let i = 0; i < 2 * COUNT; i++) {
    const { mean, spread } = CHANNELS[i % 2] as (typeof CHANNELS)[0];
    given[i] = mean + spread * Math.sqrt(3) * next();
    gradient[i] = next();
  }
  const y = bn.forward(x).data;
  const dx = bn.backward(dy).data;
  const [values, dys] = [x.data, dy.data];

  CHANNELS.forEach(({ mean: about }, c) => {
    const sum = (term: (i: number) => number) => {
      let total = 0;
      for (let i = c; i < 2 * COUNT; i += 2) total += term(i);
      return total;
    };
    const mean = about + sum((i) => (values[i] as number) - about) / COUNT;
    const variance = sum((i) => ((values[i] as number) - mean) ** 2) / COUNT;
    const rstd = 1 / Math.sqrt(variance + Math.fround(1e-3));
    const xhat = (i: number) => ((values[i] as number) - mean) * rstd;
    const [gamma, beta] = [bn.gamma?.value.data[c] as number, bn.beta?.value.data[c] as number];
    expect(Math.abs((bn.runningMean.data[c] as number) - mean)).toBeLessThan(U * (Math.abs(mean) + 3 / rstd));
    expect(Math.abs((bn.runningVariance.data[c] as number) / variance - 1)).toBeLessThan(2 * U);

    const [dbeta, dgamma] = [sum((i) => dys[i] as number), sum((i) => (dys[i] as number) * xhat(i))];
    const terms = sum((i) => Math.abs(dys[i] as number));
    const termsXhat = sum((i) => Math.abs(dys[i] as number) * (Math.abs(xhat(i)) + 1));
    expect(Math.abs((bn.beta?.grad.data[c] as number) - dbeta)).toBeLessThan(3 * U * terms);
    expect(Math.abs((bn.gamma?.grad.data[c] as number) - dgamma)).toBeLessThan(7 * U * termsXhat);

    // The largest share of its bound.
    let [ofY, ofDx] = [0, 0];
    for (let i = c; i < 2 * COUNT; i += 2) {
      const [own, d] = [xhat(i), dys[i] as number];
      const scale = Math.abs(gamma) * Math.max(1, Math.abs(own)) + Math.abs(beta);
      ofY = Math.max(ofY, Math.abs((y[i] as number) - (gamma * own + beta)) / (6 * U * scale));
      const want = gamma * rstd * (d - (dbeta + own * dgamma) / COUNT);
      const back = (terms + (Math.abs(own) + 1) * termsXhat) / COUNT;
      ofDx = Math.max(
        ofDx,
        Math.abs((dx[i] as number) - want) / (10 * U * Math.abs(gamma) * rstd * (Math.abs(d) + back)),
      );
    }
    expect(ofY, "y").toBeLessThan(1);
    expect(ofDx, "dx").toBeLessThan(1);
  });
  ek.dispose();
}, 120_000);

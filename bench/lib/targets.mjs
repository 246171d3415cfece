// Goals, each held against one peer's time divided by ours.

/** We take at most 1/n of its time. @param {string} peer @param {number} n @returns {import("./bench.mjs").Target} */
export const timesFaster = (peer, n) => ({ peer, atLeast: n, text: `≥ ${n}×` });

/** @param {string} peer @param {number} share @returns {import("./bench.mjs").Target} */
export const shareOfTime = (peer, share) => ({ peer, atLeast: 1 / share, text: `≤ ${share} of its time` });

/** @param {string} peer @param {number} share @returns {import("./bench.mjs").Target} */
export const shareOfLimit = (peer, share) => ({ peer, atLeast: share, text: `≥ ${share} of its speed` });

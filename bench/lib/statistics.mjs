// Pure arithmetic on measurements.

/** @param {readonly number[]} values not empty */
export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/**
 * Least squares y = slope·x + intercept, with the share r² of the variance that it explains.
 * @param {readonly (readonly [x: number, y: number])[]} points at least two, with different x
 */
export function linearFit(points) {
  const mean = (/** @type {number[]} */ values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const meanX = mean(points.map(([x]) => x));
  const meanY = mean(points.map(([, y]) => y));
  let [xx, xy, yy] = [0, 0, 0];
  for (const [x, y] of points) {
    xx += (x - meanX) ** 2;
    xy += (x - meanX) * (y - meanY);
    yy += (y - meanY) ** 2;
  }
  const slope = xy / xx;
  return { slope, intercept: meanY - slope * meanX, r2: yy === 0 ? 1 : xy ** 2 / (xx * yy) };
}

/** p in y ≈ c·xᵖ: 1 is linear. @param {readonly (readonly [x: number, y: number])[]} points all positive */
export function exponent(points) {
  return linearFit(points.map(([x, y]) => /** @type {const} */ ([Math.log(x), Math.log(y)]))).slope;
}

/**
 * The largest difference, as a share of the largest value expected; infinite where lengths differ or a value is NaN.
 * @param {ArrayLike<number>} got @param {ArrayLike<number>} want
 */
export function relativeDifference(got, want) {
  if (got.length !== want.length) return Number.POSITIVE_INFINITY;
  let [difference, scale] = [0, 0];
  for (let i = 0; i < want.length; i++) {
    const here = Math.abs(got[i] - want[i]);
    if (Number.isNaN(here)) return Number.POSITIVE_INFINITY;
    difference = Math.max(difference, here);
    scale = Math.max(scale, Math.abs(want[i]));
  }
  return scale === 0 ? difference : difference / scale;
}

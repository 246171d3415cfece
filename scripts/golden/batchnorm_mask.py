"""Batch normalization with a mask: three training steps for every case; dy is 0 where x is masked."""

from dataclasses import asdict, dataclass

import keras
import numpy as np
import tensorflow as tf

from .common import assert_near, deviation, normal, precision, save

STATISTICS = ("moving_mean", "moving_variance")
STEPS = ("step0", "step1", "step2")


@dataclass
class Case:
    name: str
    shape: tuple
    kind: str  # "samples": a flag a sample; "positions": a flag a position; "lengths": positions of each sample
    epsilon: float = 1e-3
    momentum: float = 0.9
    center: bool = True
    scale: bool = True


CASES = [
    Case("rank2_samples", (11, 5), "samples"),
    Case("rank2_samples_wide", (16, 37), "samples", epsilon=1e-5, momentum=0.99),
    Case("rank3_lengths", (5, 7, 6), "lengths"),
    Case("rank3_positions", (4, 6, 5), "positions", epsilon=1e-5),
    Case("rank3_no_scale", (4, 6, 5), "positions", scale=False),
    Case("rank4_samples", (6, 3, 4, 5), "samples", center=False),
    Case("rank4_positions", (3, 5, 4, 7), "positions", momentum=0.99),
    Case("rank5_positions", (2, 3, 4, 3, 5), "positions"),
]


def mask_of(case, rng):
    """(flags, one a position; what a user gives: flags or lengths)."""
    positions = case.shape[:-1]
    if case.kind == "samples":
        given = rng.random(case.shape[0]) < 0.6
        given[:2] = True, False
        return np.broadcast_to(given.reshape(-1, *[1] * (len(positions) - 1)), positions), given.astype(np.uint8)
    if case.kind == "lengths":
        # One sample whole, one empty.
        lengths = rng.integers(0, case.shape[1] + 1, case.shape[0])
        lengths[:2] = case.shape[1], 0
        return np.arange(case.shape[1]) < lengths[:, None], lengths.astype(np.int32)
    flags = rng.random(positions) < 0.7
    flags.flat[:2] = True, False
    return flags, flags.astype(np.uint8)


def inputs_of(case, rng):
    """Start values and each step's x, dy and mask; every channel has a mean and a spread of its own."""
    channels = case.shape[-1]
    start = {}
    if case.scale:
        start["gamma"] = normal(rng, channels, 0.5, 1.0)
    if case.center:
        start["beta"] = normal(rng, channels, 0.5)
    start["moving_mean"] = np.zeros(channels, np.float32)
    start["moving_variance"] = np.ones(channels, np.float32)
    spread, center = rng.uniform(0.3, 3.0, channels), rng.standard_normal(channels)
    steps, flags = {}, {}
    for step in STEPS:
        flags[step], given = mask_of(case, rng)
        x = ((rng.standard_normal(case.shape) + center) * spread).astype(np.float32)
        # Padding is far off: it would show in every number if it counted.
        x[~flags[step]] += 100
        dy = normal(rng, case.shape)
        dy[~flags[step]] = 0
        steps[step] = {"x": x, "dy": dy, "lengths" if case.kind == "lengths" else "mask": given}
    return start, steps, flags


def run_keras(case, start, steps, flags, dtype):
    """What Keras says, step by step: { step: { y, dx, dgamma, dbeta, mean, variance and the moving ones } }."""
    with precision(dtype):
        layer = keras.layers.BatchNormalization(
            momentum=case.momentum, epsilon=case.epsilon, center=case.center, scale=case.scale
        )
        layer.build(case.shape)
        layer.set_weights(list(start.values()))
        parameters = {"d" + p.name: p.value for p in (layer.gamma, layer.beta) if p is not None}
        results = {}
        for step, given in steps.items():
            x, mask = tf.constant(given["x"], dtype), tf.constant(flags[step])
            mean, variance = layer._moments(x, mask)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True, mask=mask)
            sources = {"dx": x, **parameters}
            gradients = tape.gradient(y, sources, output_gradients=tf.constant(given["dy"], dtype))
            results[step] = {"y": y.numpy(), **{name: gradient.numpy() for name, gradient in gradients.items()}}
            results[step] |= {"mean": mean.numpy(), "variance": variance.numpy()}
            results[step] |= {name: getattr(layer, name).numpy() for name in STATISTICS}
        return results


def run_formula(case, start, steps, flags):
    """The same from the formulas, in f64 on the unmasked rows alone, sharing nothing with Keras."""
    gamma = np.float64(start["gamma"]) if case.scale else 1.0
    beta = np.float64(start["beta"]) if case.center else 0.0
    moving_mean, moving_variance = (np.float64(start[name]) for name in STATISTICS)
    results = {}
    for step, given in steps.items():
        x, dy, kept = np.float64(given["x"]), np.float64(given["dy"]), flags[step]
        rows, dy_rows = x[kept], dy[kept]
        mean, variance = rows.mean(0), rows.var(0)
        rstd = 1 / np.sqrt(variance + case.epsilon)
        normalised = (rows - mean) * rstd
        dgamma, dbeta = (dy_rows * normalised).sum(0), dy_rows.sum(0)
        dx = np.zeros_like(x)
        dx[kept] = gamma * rstd * (dy_rows - (dbeta + normalised * dgamma) / len(rows))
        moving_mean = case.momentum * moving_mean + (1 - case.momentum) * mean
        moving_variance = case.momentum * moving_variance + (1 - case.momentum) * variance
        results[step] = {"y": gamma * (x - mean) * rstd + beta, "dx": dx, "dgamma": dgamma, "dbeta": dbeta}
        results[step] |= {"mean": mean, "variance": variance}
        results[step] |= {"moving_mean": moving_mean, "moving_variance": moving_variance}
    return results


def write(path, _mnist):
    # Keras adds this (1e-7) to the count of unmasked values; ours is exact.
    keras.config.set_epsilon(0.0)
    tensors, cases = {}, []
    for index, case in enumerate(CASES):
        start, steps, flags = inputs_of(case, np.random.default_rng([5, index]))
        truth = run_keras(case, start, steps, flags, "float64")
        single = run_keras(case, start, steps, flags, "float32")
        formula = run_formula(case, start, steps, flags)
        keras_f32 = {}
        for step, results in truth.items():
            for name, value in results.items():
                assert_near(f"{case.name} {step} {name}", value, formula[step][name])
                keras_f32[name] = max(keras_f32.get(name, 0.0), deviation(single[step][name], value))
        tensors |= {f"{case.name}/start/{name}": value for name, value in start.items()}
        for step in steps:
            both = steps[step] | truth[step]
            tensors |= {f"{case.name}/{step}/{name}": value for name, value in both.items()}
        cases.append(asdict(case) | {"keras_f32": keras_f32})
        print(f"  {case.name:22s} Keras f32 at most {max(keras_f32.values()):.1e}")
    keras.config.set_epsilon(1e-7)
    save(path, tensors, cases=cases)

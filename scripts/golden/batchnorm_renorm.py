"""Batch renormalization by Keras's rule: four training steps, a frozen one and an inference for every case."""

from dataclasses import asdict, dataclass

import keras
import numpy as np
import tensorflow as tf

from .common import assert_near, deviation, normal, precision, save

# In the order of Keras's get_weights().
STATISTICS = ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")


@dataclass
class Case:
    name: str
    shape: tuple
    axis: int
    clipping: dict
    epsilon: float = 1e-3
    momentum: float = 0.9
    renorm_momentum: float = 0.8
    center: bool = True
    scale: bool = True
    statistics: str = "set"  # "initial": mean 0, variance 1; "set": near the inputs', so that not everything is clipped


CASES = [
    Case("rank2_initial", (9, 5), -1, {"rmax": 3.0, "rmin": 0.5, "dmax": 5.0}, statistics="initial"),
    Case("rank2_no_limits", (12, 7), -1, {}, momentum=0.99),
    Case("rank2_tight", (16, 37), -1, {"rmax": 1.1, "rmin": 0.9, "dmax": 0.1}, epsilon=1e-5),
    Case("rank3_upper_only", (4, 6, 5), -1, {"rmax": 1.2}, renorm_momentum=0.99),
    Case("rank4_last", (3, 5, 4, 7), -1, {"rmax": 1.5, "rmin": 1 / 1.5, "dmax": 0.5}),
    Case("rank4_channels_first", (3, 6, 4, 5), 1, {"rmax": 1.5, "rmin": 1 / 1.5, "dmax": 0.5}, epsilon=1e-5),
    Case("rank4_plain", (3, 4, 5, 4), -1, {"rmax": 2.0, "rmin": 0.5, "dmax": 1.0}, center=False, scale=False),
    Case("rank4_no_center", (3, 4, 5, 4), -1, {"rmax": 2.0, "rmin": 0.5, "dmax": 1.0}, center=False),
]


def inputs_of(case, rng):
    """Start values and each step's x and dy; every channel has a mean and a spread of its own."""
    channels = case.shape[case.axis]
    spread_shape = [1] * len(case.shape)
    spread_shape[case.axis] = channels
    spread, center = rng.uniform(0.3, 3.0, channels), rng.standard_normal(channels)
    start = {}
    if case.scale:
        start["gamma"] = normal(rng, channels, 0.5, 1.0)
    if case.center:
        start["beta"] = normal(rng, channels, 0.5)
    near = lambda value, by: (value * (1 + by * rng.uniform(-1, 1, channels))).astype(np.float32)  # noqa: E731
    if case.statistics == "set":
        start["moving_mean"], start["moving_variance"] = near(center * spread, 0.3), near(spread**2, 0.6)
        start["moving_stddev"] = np.sqrt(start["moving_variance"] + np.float32(case.epsilon))
        start["renorm_mean"], start["renorm_stddev"] = near(center * spread, 0.3), near(spread, 0.5)
    else:
        for name in STATISTICS:
            start[name] = np.full(channels, 0 if name.endswith("mean") else 1, np.float32)
    steps = {}
    for step in ("step0", "step1", "step2", "step3", "frozen", "inference"):
        x = rng.standard_normal(case.shape) * spread.reshape(spread_shape) + (center * spread).reshape(spread_shape)
        steps[step] = {"x": x.astype(np.float32)}
        if step != "inference":
            steps[step]["dy"] = normal(rng, case.shape)
    return start, steps


def run_keras(case, start, steps, dtype):
    """What Keras says, step by step: { step: { y, dx, dgamma, dbeta, the five moving statistics } }."""
    # Keras takes Python numbers to f64 by way of f32 where they meet a tensor; NumPy numbers arrive whole.
    whole = np.float64 if dtype == "float64" else float
    with precision(dtype):
        layer = keras.layers.BatchNormalization(
            axis=case.axis,
            momentum=case.momentum,
            epsilon=case.epsilon,
            center=case.center,
            scale=case.scale,
            renorm=True,
            renorm_clipping={name: whole(value) for name, value in case.clipping.items()},
            renorm_momentum=case.renorm_momentum,
        )
        layer.build(case.shape)
        layer.set_weights(list(start.values()))
        parameters = {"d" + p.name: p.value for p in (layer.gamma, layer.beta) if p is not None}
        results = {}
        for step, given in steps.items():
            x = tf.constant(given["x"], dtype)
            if step == "inference":
                results[step] = {"y": layer(x, training=False).numpy()}
                continue
            layer.trainable = step != "frozen"
            with tf.GradientTape() as tape:
                # Watched by hand: a frozen layer's parameters are no longer watched on their own.
                tape.watch([x, *parameters.values()])
                y = layer(x, training=True)
            sources = {"dx": x, **parameters}
            gradients = tape.gradient(y, sources, output_gradients=tf.constant(given["dy"], dtype))
            results[step] = {"y": y.numpy(), **{name: gradient.numpy() for name, gradient in gradients.items()}}
            results[step] |= {name: getattr(layer, name).numpy() for name in STATISTICS}
        return results


def run_formula(case, start, steps):
    """The same from the formulas, in f64, sharing nothing with Keras."""
    axes = tuple(i for i in range(len(case.shape)) if i != case.axis % len(case.shape))
    count = np.prod([case.shape[i] for i in axes])
    wide = lambda v: np.expand_dims(np.float64(v), axes)  # noqa: E731
    gamma = wide(start["gamma"]) if case.scale else 1.0
    beta = wide(start["beta"]) if case.center else 0.0
    now = {name: np.float64(start[name]) for name in STATISTICS}
    results = {}
    for step, given in steps.items():
        x = np.float64(given["x"])
        training = step.startswith("step")
        mean, variance = (x.mean(axes), x.var(axes)) if training else (now["moving_mean"], now["moving_variance"])
        stddev = np.sqrt(variance + case.epsilon)
        r, d = np.ones_like(mean), np.zeros_like(mean)
        if training:
            renorm_stddev = np.maximum(now["renorm_stddev"], np.sqrt(case.epsilon))
            limit = case.clipping.get
            r = np.clip(stddev / renorm_stddev, limit("rmin", 0.0), limit("rmax", np.inf))
            d = np.clip((mean - now["renorm_mean"]) / renorm_stddev, -limit("dmax", np.inf), limit("dmax", np.inf))
        normalised = (x - wide(mean)) / wide(stddev)
        results[step] = {"y": gamma * (normalised * wide(r) + wide(d)) + beta}
        if step == "inference":
            continue
        dy = np.float64(given["dy"])
        sum_dy, sum_product = dy.sum(axes), (dy * normalised).sum(axes)
        through = dy - (wide(sum_dy) + normalised * wide(sum_product)) / count if training else dy
        if training:
            move = lambda name, rate, batch: now.update({name: rate * now[name] + (1 - rate) * batch})  # noqa: E731
            move("renorm_mean", case.renorm_momentum, mean)
            move("renorm_stddev", case.renorm_momentum, stddev)
            move("moving_mean", case.momentum, mean)
            move("moving_stddev", case.momentum, stddev)
            now["moving_variance"] = np.maximum(now["moving_stddev"] ** 2 - case.epsilon, 0)
        dx = gamma * wide(r) / wide(stddev) * through
        results[step] |= {"dx": dx, "dgamma": r * sum_product + d * sum_dy, "dbeta": sum_dy, **now}
    return results


def write(path, _mnist):
    tensors, cases = {}, []
    for index, case in enumerate(CASES):
        start, steps = inputs_of(case, np.random.default_rng([6, index]))
        truth = run_keras(case, start, steps, "float64")
        single = run_keras(case, start, steps, "float32")
        formula = run_formula(case, start, steps)
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
    save(path, tensors, cases=cases)

"""Batch normalization: three training steps, one frozen step, one inference, for every case."""

from dataclasses import asdict, dataclass

import keras
import numpy as np
import tensorflow as tf

from .common import assert_near, deviation, normal, precision, save

STATISTICS = ("moving_mean", "moving_variance")


@dataclass
class Case:
    name: str
    shape: tuple
    axis: int
    epsilon: float = 1e-3
    momentum: float = 0.99
    center: bool = True
    scale: bool = True
    offset: float = 0.0  # the inputs' mean, in units of their standard deviation
    statistics: str = "initial"  # "initial": mean 0, variance 1; "set": other start values


CASES = [
    Case("rank2_last", (7, 5), -1),
    Case("rank2_last_wide", (16, 37), -1, momentum=0.9, statistics="set"),
    Case("rank2_first", (6, 9), 0, momentum=0.9),
    Case("rank2_far_mean", (32, 9), -1, momentum=0.9, offset=1e4),
    Case("rank2_plain", (12, 8), 1, center=False, scale=False),
    Case("rank3_last", (4, 6, 5), -1, epsilon=1e-5, statistics="set"),
    Case("rank3_middle", (4, 5, 6), 1, momentum=0.9),
    Case("rank3_first", (5, 4, 6), 0, center=False),
    Case("rank4_last", (3, 5, 4, 7), -1),
    Case("rank4_last_image", (2, 9, 7, 16), -1, momentum=0.9, statistics="set"),
    Case("rank4_one_channel", (4, 6, 5, 1), -1, momentum=0.9),
    Case("rank4_channels_first", (3, 6, 4, 5), 1, epsilon=1e-5, momentum=0.9),
    Case("rank4_middle", (2, 5, 6, 3), 2, scale=False),
    Case("rank4_no_center", (3, 4, 5, 4), -1, center=False, momentum=0.9),
    Case("rank4_no_scale", (3, 4, 5, 4), -1, scale=False, epsilon=1e-5),
    Case("rank5_last", (2, 3, 4, 3, 5), -1, momentum=0.9),
    Case("rank5_channels_first", (2, 4, 3, 3, 4), 1, statistics="set"),
    Case("rank5_middle", (2, 3, 5, 2, 4), -3, epsilon=1e-5),
]


def inputs_of(case, rng):
    """Start values and each step's x and dy; every channel has a mean and a spread of its own."""
    channels = case.shape[case.axis]
    spread_shape = [1] * len(case.shape)
    spread_shape[case.axis] = channels
    start = {}
    if case.scale:
        start["gamma"] = normal(rng, channels, 0.5, 1.0)
    if case.center:
        start["beta"] = normal(rng, channels, 0.5)
    is_set = case.statistics == "set"
    start["moving_mean"] = normal(rng, channels) if is_set else np.zeros(channels, np.float32)
    start["moving_variance"] = normal(rng, channels) ** 2 + np.float32(0.5) if is_set else np.ones(channels, np.float32)

    spread = rng.uniform(0.3, 3.0, spread_shape)
    center = rng.standard_normal(spread_shape) + case.offset
    steps = {}
    for step in ("step0", "step1", "step2", "frozen", "inference"):
        steps[step] = {"x": ((rng.standard_normal(case.shape) + center) * spread).astype(np.float32)}
        if step != "inference":
            steps[step]["dy"] = normal(rng, case.shape)
    return start, steps


def run_keras(case, start, steps, dtype):
    """What Keras says, step by step: { step: { y, dx, dgamma, dbeta, moving_mean, moving_variance } }."""
    with precision(dtype):
        layer = keras.layers.BatchNormalization(
            axis=case.axis, momentum=case.momentum, epsilon=case.epsilon, center=case.center, scale=case.scale
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
    moving_mean, moving_variance = (np.float64(start[name]) for name in STATISTICS)
    results = {}
    for step, given in steps.items():
        x = np.float64(given["x"])
        training = step.startswith("step")
        mean, variance = (x.mean(axes), x.var(axes)) if training else (moving_mean, moving_variance)
        rstd = wide(1 / np.sqrt(variance + case.epsilon))
        normalised = (x - wide(mean)) * rstd
        results[step] = {"y": gamma * normalised + beta}
        if step == "inference":
            continue
        dy = np.float64(given["dy"])
        dgamma, dbeta = (dy * normalised).sum(axes), dy.sum(axes)
        through = dy - (wide(dbeta) + normalised * wide(dgamma)) / count if training else dy
        if training:
            moving_mean = case.momentum * moving_mean + (1 - case.momentum) * mean
            moving_variance = case.momentum * moving_variance + (1 - case.momentum) * variance
        results[step] |= {"dx": gamma * rstd * through, "dgamma": dgamma, "dbeta": dbeta}
        results[step] |= {"moving_mean": moving_mean, "moving_variance": moving_variance}
    return results


def write(path, _mnist):
    tensors, cases = {}, []
    for index, case in enumerate(CASES):
        start, steps = inputs_of(case, np.random.default_rng([1, index]))
        truth = run_keras(case, start, steps, "float64")
        single = run_keras(case, start, steps, "float32")
        formula = run_formula(case, start, steps)
        # A far mean costs f64 digits too: x − mean keeps about 16 − log10(offset) of them.
        bound = 1e-12 * max(1.0, case.offset)
        keras_f32 = {}
        for step, results in truth.items():
            for name, value in results.items():
                assert_near(f"{case.name} {step} {name}", value, formula[step][name], bound)
                keras_f32[name] = max(keras_f32.get(name, 0.0), deviation(single[step][name], value))
        tensors |= {f"{case.name}/start/{name}": value for name, value in start.items()}
        for step in steps:
            both = steps[step] | truth[step]
            tensors |= {f"{case.name}/{step}/{name}": value for name, value in both.items()}
        cases.append(asdict(case) | {"keras_f32": keras_f32})
        print(f"  {case.name:22s} Keras f32 at most {max(keras_f32.values()):.1e}")
    save(path, tensors, cases=cases)

"""Convolution, dense, pooling and softmax with cross-entropy, one layer at a time, with gradients."""

import keras
import numpy as np
import tensorflow as tf

from .common import assert_near, deviation, normal, precision, save

KERAS = {
    "conv2d": keras.layers.Conv2D,
    "dense": keras.layers.Dense,
    "max_pooling2d": keras.layers.MaxPooling2D,
    "average_pooling2d": keras.layers.AveragePooling2D,
    "global_average_pooling2d": keras.layers.GlobalAveragePooling2D,
}


def conv(name, shape, filters, kernel_size, **options):
    options = {"filters": filters, "kernel_size": kernel_size, **options}
    return {"name": name, "layer": "conv2d", "shape": shape, "options": options}


def dense(name, shape, units, **options):
    return {"name": name, "layer": "dense", "shape": shape, "options": {"units": units, **options}}


def pool(name, shape, pool_size, inputs="normal", **options):
    options = {"pool_size": pool_size, **options}
    return {"name": name, "layer": "max_pooling2d", "shape": shape, "inputs": inputs, "options": options}


def average(name, shape, pool_size, **options):
    return {"name": name, "layer": "average_pooling2d", "shape": shape, "options": {"pool_size": pool_size, **options}}


def global_average(name, shape):
    return {"name": name, "layer": "global_average_pooling2d", "shape": shape, "options": {}}


CASES = [
    conv("conv_valid", (2, 6, 7, 3), 5, 3, activation="relu"),
    conv("conv_same", (2, 5, 6, 3), 4, 3, padding="same"),
    conv("conv_same_stride2_even", (2, 6, 8, 3), 5, 3, padding="same", strides=2),
    conv("conv_same_stride2_odd", (1, 7, 5, 4), 3, 3, padding="same", strides=2, activation="relu"),
    conv("conv_same_even_kernel", (2, 5, 4, 2), 3, (2, 4), padding="same"),
    conv("conv_valid_strides_2_1", (2, 7, 6, 2), 9, (2, 3), strides=(2, 1)),
    conv("conv_valid_stride3_leftover", (1, 9, 8, 2), 4, 2, strides=3),
    conv("conv_one_channel", (2, 8, 7, 1), 8, 5, padding="same", activation="relu"),
    conv("conv_one_filter", (2, 5, 5, 6), 1, 3),
    conv("conv_pointwise", (2, 4, 3, 5), 7, 1),
    conv("conv_pointwise_stride2", (2, 5, 4, 3), 4, 1, strides=2),
    conv("conv_17_channels", (1, 5, 6, 9), 17, 3, activation="relu"),
    conv("conv_no_bias", (2, 5, 5, 4), 8, 3, use_bias=False),
    conv("conv_kernel_is_image", (3, 4, 3, 2), 6, (4, 3)),
    dense("dense", (5, 7), 3),
    dense("dense_relu", (4, 13), 10, activation="relu"),
    dense("dense_no_bias", (3, 9), 17, use_bias=False),
    dense("dense_one", (1, 1), 1),
    pool("pool_valid", (2, 6, 4, 3), 2),
    pool("pool_valid_leftover", (2, 7, 5, 5), 2),
    pool("pool_same_leftover", (2, 7, 5, 2), 2, padding="same"),
    pool("pool_overlap", (2, 7, 8, 3), 3, strides=2),
    pool("pool_overlap_same", (1, 6, 7, 4), 3, strides=2, padding="same"),
    pool("pool_gaps", (1, 8, 7, 2), 2, strides=3),
    pool("pool_stride1_same", (1, 5, 4, 3), (2, 3), strides=1, padding="same"),
    # Zeros as padding would win here; the border must not take part.
    pool("pool_same_negative", (1, 5, 5, 3), 3, inputs="negative", strides=2, padding="same"),
    # Several largest values in most windows: the first in row-major order takes the gradient.
    pool("pool_ties", (2, 6, 6, 3), 2, inputs="few_values"),
    pool("pool_ties_overlap", (1, 7, 7, 2), 3, inputs="few_values", strides=2),
    pool("pool_constant", (1, 4, 4, 2), 2, inputs="zero"),
    average("average_valid", (2, 6, 4, 3), 2),
    average("average_valid_leftover", (2, 7, 5, 5), 2),
    # 'same' does not count what it pads: windows at the border are means of fewer pixels.
    average("average_same_leftover", (2, 7, 5, 2), 2, padding="same"),
    average("average_overlap", (2, 7, 8, 3), 3, strides=2),
    average("average_overlap_same", (1, 6, 7, 4), 3, strides=2, padding="same"),
    average("average_gaps", (1, 8, 7, 2), 2, strides=3),
    average("average_stride1_same", (1, 5, 4, 9), (2, 3), strides=1, padding="same"),
    global_average("global_average", (3, 7, 5, 6)),
    global_average("global_average_one_pixel", (2, 1, 1, 3)),
]


def column(*values):
    return np.float32(values)[:, np.newaxis]


INPUTS = {
    "normal": normal,
    "negative": lambda rng, shape: -np.abs(normal(rng, shape)) - np.float32(0.5),
    "few_values": lambda rng, shape: rng.integers(0, 3, shape).astype(np.float32),
    "zero": lambda rng, shape: np.zeros(shape, np.float32),
}

LOGITS = {
    "softmax_10": lambda rng: normal(rng, (6, 10), 2.0),
    "softmax_17": lambda rng: normal(rng, (5, 17), 5.0, 3.0),
    "softmax_2": lambda rng: normal(rng, (3, 2)),
    # exp of these overflows or vanishes unless the row's largest is taken off first.
    "softmax_far": lambda rng: normal(rng, (4, 5)) * column(1, 40, 300, 1) + column(1000, 0, 0, -1000),
}


def run_layer(case, weights, x, dy, dtype):
    """y and the gradients of x, kernel and bias."""
    with precision(dtype):
        layer = KERAS[case["layer"]](**case["options"])
        layer.build(x.shape)
        layer.set_weights(list(weights.values()))
        sources = {"dx": tf.constant(x, dtype)} | {"d" + w.name: w.value for w in layer.weights}
        with tf.GradientTape() as tape:
            tape.watch(sources["dx"])
            y = layer(sources["dx"])
        gradients = tape.gradient(y, sources, output_gradients=tf.constant(dy, dtype))
        return {"y": y.numpy()} | {name: gradient.numpy() for name, gradient in gradients.items()}


def shapes_of(case):
    """The weights' shapes by name, and y's shape."""
    layer = KERAS[case["layer"]](**case["options"])
    layer.build(case["shape"])
    return {w.name: w.shape for w in layer.weights}, layer.compute_output_shape(case["shape"])


def windows(case, x, dy):
    """For each output value its index and the slices of its window, without what lies outside the image."""
    options = case["options"]
    pool_h, pool_w = np.broadcast_to(options["pool_size"], 2)
    stride_h, stride_w = np.broadcast_to(options.get("strides", options["pool_size"]), 2)
    (_, in_h, in_w, _), (_, out_h, out_w, _) = x.shape, dy.shape
    same = options.get("padding") == "same"
    top = max((out_h - 1) * stride_h + pool_h - in_h, 0) // 2 if same else 0
    left = max((out_w - 1) * stride_w + pool_w - in_w, 0) // 2 if same else 0
    for n, i, j, c in np.ndindex(dy.shape):
        rows = slice(max(i * stride_h - top, 0), min(i * stride_h - top + pool_h, in_h))
        columns = slice(max(j * stride_w - left, 0), min(j * stride_w - left + pool_w, in_w))
        yield (n, i, j, c), (n, rows, columns, c)


def max_formula(case, x, dy):
    """Max pooling and its gradient window by window: the first of several largest values takes the gradient."""
    y, dx = np.empty(dy.shape), np.zeros(x.shape)
    for at, inside in windows(case, x, dy):
        window = x[inside]
        first = np.unravel_index(window.argmax(), window.shape)
        y[at] = window[first]
        dx[inside][first] += dy[at]
    return {"y": y, "dx": dx}


def average_formula(case, x, dy):
    """Average pooling and its gradient window by window."""
    x, y, dx = np.float64(x), np.empty(dy.shape), np.zeros(x.shape)
    for at, inside in windows(case, x, dy):
        y[at] = x[inside].mean()
        dx[inside] += np.float64(dy[at]) / x[inside].size
    return {"y": y, "dx": dx}


def global_average_formula(_case, x, dy):
    x, dy = np.float64(x), np.float64(dy)
    pixels = x.shape[1] * x.shape[2]
    return {"y": x.mean((1, 2)), "dx": np.broadcast_to(dy[:, None, None] / pixels, x.shape)}


FORMULAS = {
    "max_pooling2d": max_formula,
    "average_pooling2d": average_formula,
    "global_average_pooling2d": global_average_formula,
}


def run_softmax(logits, labels, dtype):
    """The mean cross-entropy, every row's own, the probabilities and the mean's gradient."""
    with precision(dtype):
        z = tf.constant(logits, dtype)
        loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        with tf.GradientTape() as tape:
            tape.watch(z)
            loss = loss_of(labels, z)
        rows = keras.ops.sparse_categorical_crossentropy(labels, z, from_logits=True)
        return {
            "loss": loss.numpy(),
            "losses": rows.numpy(),
            "probabilities": keras.ops.softmax(z).numpy(),
            "dlogits": tape.gradient(loss, z).numpy(),
        }


def softmax_formula(logits, labels):
    z = np.float64(logits)
    z = z - z.max(-1, keepdims=True)
    sums = np.exp(z).sum(-1, keepdims=True)
    one_hot = np.eye(z.shape[-1])[labels]
    losses = ((np.log(sums) - z) * one_hot).sum(-1)
    probabilities = np.exp(z) / sums
    return {
        "loss": losses.mean(),
        "losses": losses,
        "probabilities": probabilities,
        "dlogits": (probabilities - one_hot) / len(z),
    }


def write(path, _mnist):
    tensors, cases = {}, []

    def add(case, given, truth, single, formula):
        name = case["name"]
        for key, value in formula.items():
            assert_near(f"{name} {key}", truth[key], value)
        keras_f32 = {key: deviation(single[key], value) for key, value in truth.items()}
        tensors.update({f"{name}/{key}": np.asarray(value) for key, value in (given | truth).items()})
        cases.append(case | {"keras_f32": keras_f32})
        print(f"  {name:28s} Keras f32 at most {max(keras_f32.values()):.1e}")

    for index, case in enumerate(CASES):
        rng = np.random.default_rng([5, index])
        weight_shapes, y_shape = shapes_of(case)
        x = INPUTS[case.get("inputs", "normal")](rng, case["shape"])
        weights = {name: normal(rng, shape, 0.5) for name, shape in weight_shapes.items()}
        dy = normal(rng, y_shape)
        truth, single = (run_layer(case, weights, x, dy, dtype) for dtype in ("float64", "float32"))
        formula = FORMULAS.get(case["layer"], lambda *_: {})(case, x, dy)
        add(case, {"x": x, **weights, "dy": dy}, truth, single, formula)

    for index, (name, make) in enumerate(LOGITS.items()):
        rng = np.random.default_rng([6, index])
        logits = make(rng)
        labels = rng.integers(0, logits.shape[1], len(logits)).astype(np.int32)
        truth, single = (run_softmax(logits, labels, dtype) for dtype in ("float64", "float32"))
        case = {"name": name, "layer": "softmax_cross_entropy", "shape": logits.shape}
        add(case, {"logits": logits, "labels": labels}, truth, single, softmax_formula(logits, labels))
    save(path, tensors, cases=cases)

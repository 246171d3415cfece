"""What the parts share: the precision switch, error measures and the safetensors writer."""

import json
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf

DTYPE_NAMES = {"float64": "F64", "float32": "F32", "int32": "I32", "uint8": "U8"}


@contextmanager
def precision(dtype):
    """Everything Keras makes inside computes in `dtype`: layers, losses and the optimizer's learning rate."""
    # Both: Keras remembers the layers' policy from its first use and then no longer follows floatx.
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


def make_optimizer(kind, options, dtype):
    """Keras brings a Python number (Adam's betas, SGD's momentum) to f64 by way of f32, which puts 1 − 0.999ᵗ off by
    1.3e-5; a NumPy number arrives whole. In f32 the options stay as Keras's users pass them."""
    if kind == "adam":
        options = {"beta_1": 0.9, "beta_2": 0.999} | options
    if dtype == "float64":
        options = {name: np.float64(value) if isinstance(value, float) else value for name, value in options.items()}
    return {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}[kind](**options)


def normal(rng, shape, scale=1.0, offset=0.0):
    """Normal numbers that f32 holds exactly, so that both precisions start from the same input."""
    return (rng.standard_normal(shape) * scale + offset).astype(np.float32)


def deviation(value, truth):
    """The largest difference as a fraction of the truth's largest magnitude."""
    truth = np.asarray(truth, np.float64)
    largest = np.abs(truth).max()
    difference = np.abs(np.asarray(value, np.float64) - truth).max()
    return float(difference / largest) if largest > 0 else float(difference)


def assert_near(name, value, truth, bound=1e-11):
    """An independent formula in f64 agrees with what the reference computed in f64."""
    error = deviation(value, truth)
    if not error <= bound:
        raise AssertionError(f"{name}: the reference is {error:.1e} from the formula, expected at most {bound:.0e}")


def save(path, tensors, **metadata):
    """A safetensors file with sorted metadata; the reference library's writer orders metadata anew on every run."""
    # Widest type first: every tensor then starts on a multiple of its element size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    versions = {"keras": keras.__version__, "tensorflow": tf.__version__, "numpy": np.__version__}
    strings = {"generator": "scripts/golden.py", "versions": versions, **metadata}
    header = {"__metadata__": {k: v if isinstance(v, str) else json.dumps(v) for k, v in sorted(strings.items())}}
    offset = 0
    for name, array in ordered:
        header[name] = {
            "dtype": DTYPE_NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in ordered:
            file.write(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())

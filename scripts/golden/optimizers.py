"""Adam and SGD: five steps on a small vector whose gradients reach from 0 over 1e-8 to 10."""

import keras
import numpy as np

from .common import assert_near, deviation, make_optimizer, normal, precision, save

STEPS, SIZE = 5, 19
OTHER_ADAM = {"learning_rate": 0.02, "beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3}
CASES = [
    {"name": "adam", "optimizer": "adam", "options": {}},
    {"name": "adam_other", "optimizer": "adam", "options": OTHER_ADAM},
    {"name": "sgd", "optimizer": "sgd", "options": {"learning_rate": 0.05}},
    {"name": "sgd_momentum", "optimizer": "sgd", "options": {"learning_rate": 0.05, "momentum": 0.9}},
    {"name": "sgd_nesterov", "optimizer": "sgd", "options": {"learning_rate": 0.05, "momentum": 0.9, "nesterov": True}},
]


def run_keras(case, start, gradients, dtype):
    """The parameters after each step, [STEPS, SIZE]."""
    with precision(dtype):
        parameters = keras.Variable(start, dtype=dtype)
        optimizer = make_optimizer(case["optimizer"], case["options"], dtype)
        rows = []
        for gradient in gradients:
            optimizer.apply([gradient.astype(dtype)], [parameters])
            rows.append(parameters.numpy())
        return np.stack(rows)


def adam_formula(p, gradients, learning_rate=1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g * g
        p = p - learning_rate * np.sqrt(1 - beta_2**t) / (1 - beta_1**t) * m / (np.sqrt(v) + epsilon)
    return p


def sgd_formula(p, gradients, learning_rate, momentum=0.0, nesterov=False):
    velocity = 0.0
    for g in gradients:
        velocity = momentum * velocity - learning_rate * g
        p = p + (momentum * velocity - learning_rate * g if nesterov else velocity)
    return p


FORMULAS = {"adam": adam_formula, "sgd": sgd_formula}


def write(path, _mnist):
    rng = np.random.default_rng(4)
    start = normal(rng, SIZE)
    gradients = normal(rng, (STEPS, SIZE)) * np.logspace(-8, 1, SIZE, dtype=np.float32)
    gradients[:, 0] = 0
    tensors, cases = {"start": start, "gradients": gradients}, []
    for case in CASES:
        truth = run_keras(case, start, gradients, "float64")
        formula = FORMULAS[case["optimizer"]](np.float64(start), np.float64(gradients), **case["options"])
        assert_near(case["name"], truth[-1], formula, 1e-14)
        tensors[f"{case['name']}/parameters"] = truth
        cases.append(case | {"keras_f32": deviation(run_keras(case, start, gradients, "float32"), truth)})
        print(f"  {case['name']:14s} Keras f32 at most {cases[-1]['keras_f32']:.1e}")
    save(path, tensors, cases=cases)

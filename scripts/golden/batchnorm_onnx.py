"""ONNX's BatchNormalization (opset 15) by its reference implementation, f64: three training steps, an inference."""

from dataclasses import asdict, dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from .common import assert_near, normal, save

PARAMETERS = ("scale", "B")
STATISTICS = ("input_mean", "input_var")


@dataclass
class Case:
    name: str
    shape: tuple  # the channel axis is 1
    epsilon: float = 1e-5
    momentum: float = 0.9


CASES = [
    Case("rank2", (9, 5)),
    Case("rank3", (4, 5, 6), momentum=0.5),
    Case("rank4", (3, 6, 4, 5)),
    Case("rank4_one_channel", (4, 1, 5, 3), epsilon=1e-3),
    Case("rank5", (2, 4, 3, 3, 4), epsilon=1e-3, momentum=0.99),
]


def evaluator(case, training):
    """One node in f64; momentum and epsilon are f32 attributes."""
    names = ["X", *PARAMETERS, *STATISTICS]
    outputs = ["Y", "running_mean", "running_var"] if training else ["Y"]
    attributes = {"epsilon": case.epsilon, "momentum": case.momentum, "training_mode": int(training)}
    node = helper.make_node("BatchNormalization", names, outputs, **attributes)
    shapes = [case.shape] + [case.shape[1:2]] * 4
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.DOUBLE, shape)  # noqa: E731
    graph = helper.make_graph([node], case.name, list(map(value, names, shapes)), list(map(value, outputs, shapes)))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)])
    onnx.checker.check_model(model)
    return lambda given: ReferenceEvaluator(model).run(None, {name: np.float64(given[name]) for name in names})


def write(path, _mnist):
    tensors, cases = {}, []
    for index, case in enumerate(CASES):
        rng = np.random.default_rng([7, index])
        channels = case.shape[1]
        spread = rng.uniform(0.3, 3.0, channels).reshape(-1, *[1] * (len(case.shape) - 2))
        start = {"scale": normal(rng, channels, 0.5, 1.0), "B": normal(rng, channels, 0.5)}
        start |= {"input_mean": normal(rng, channels), "input_var": normal(rng, channels) ** 2 + np.float32(0.5)}
        tensors |= {f"{case.name}/start/{name}": value for name, value in start.items()}
        now = dict(start)
        momentum, epsilon = float(np.float32(case.momentum)), float(np.float32(case.epsilon))
        axes = tuple(i for i in range(len(case.shape)) if i != 1)
        for step in ("step0", "step1", "step2", "inference"):
            training = step != "inference"
            x = ((rng.standard_normal(case.shape) + rng.standard_normal()) * spread).astype(np.float32)
            outputs = evaluator(case, training)(now | {"X": x})
            tensors |= {f"{case.name}/{step}/X": x, f"{case.name}/{step}/Y": outputs[0]}
            if not training:
                continue
            moments = np.float64(x).mean(axes), np.float64(x).var(axes)
            for name, value, batch in zip(STATISTICS, outputs[1:], moments):
                moved = momentum * np.float64(now[name]) + (1 - momentum) * batch
                assert_near(f"{case.name} {step} {name}", value, moved)
                now[name] = value
            tensors |= {f"{case.name}/{step}/running_mean": outputs[1], f"{case.name}/{step}/running_var": outputs[2]}
        cases.append(asdict(case) | {"momentum": momentum, "epsilon": epsilon})
    save(path, tensors, cases=cases, onnx=onnx.__version__)

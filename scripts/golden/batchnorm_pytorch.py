"""PyTorch's rules for BatchNorm1d/2d/3d, from the formulas of its documentation, in f64; no PyTorch takes part.

y = (x − E[x])/√(Var[x] + eps)·weight + bias with the biased variance; in training
running_mean ← (1 − f)·running_mean + f·E[x] and running_var ← (1 − f)·running_var + f·(unbiased variance),
where f is momentum, or with momentum=None 1/num_batches_tracked, counted before: a plain average.
"""

from dataclasses import asdict, dataclass

import numpy as np

from .common import normal, save


@dataclass
class Case:
    name: str
    shape: tuple  # the channel axis is 1
    momentum: float | None = 0.1
    eps: float = 1e-5
    affine: bool = True


CASES = [
    Case("1d_rank2", (9, 5)),
    Case("1d_rank3", (4, 5, 6), momentum=0.3),
    Case("2d", (3, 6, 4, 5)),
    Case("2d_cumulative", (3, 4, 2, 3), momentum=None),
    Case("2d_plain", (2, 4, 3, 5), eps=1e-3, affine=False),
    Case("3d_four_values", (2, 5, 1, 2, 1), momentum=None),
]


def write(path, _mnist):
    tensors, cases = {}, []
    for index, case in enumerate(CASES):
        rng = np.random.default_rng([8, index])
        channels = case.shape[1]
        axes = tuple(i for i in range(len(case.shape)) if i != 1)
        wide = lambda v, axes=axes: np.expand_dims(np.float64(v), axes)  # noqa: E731
        count = np.prod([case.shape[i] for i in axes])
        spread = wide(rng.uniform(0.3, 3.0, channels))
        weight = normal(rng, channels, 0.5, 1.0) if case.affine else np.ones(channels, np.float32)
        bias = normal(rng, channels, 0.5) if case.affine else np.zeros(channels, np.float32)
        if case.affine:
            tensors |= {f"{case.name}/start/weight": weight, f"{case.name}/start/bias": bias}
        running_mean, running_var, num_batches_tracked = np.zeros(channels), np.ones(channels), 0
        for step in ("step0", "step1", "step2", "step3", "eval"):
            x = ((rng.standard_normal(case.shape) + rng.standard_normal()) * spread).astype(np.float32)
            dy = normal(rng, case.shape)
            wide_x, wide_dy = np.float64(x), np.float64(dy)
            training = step != "eval"
            mean, var = (wide_x.mean(axes), wide_x.var(axes)) if training else (running_mean, running_var)
            rstd = 1 / np.sqrt(var + case.eps)
            normalised = (wide_x - wide(mean)) * wide(rstd)
            dweight, dbias = (wide_dy * normalised).sum(axes), wide_dy.sum(axes)
            through = wide_dy - (wide(dbias) + normalised * wide(dweight)) / count if training else wide_dy
            if training:
                num_batches_tracked += 1
                factor = 1 / num_batches_tracked if case.momentum is None else case.momentum
                running_mean = (1 - factor) * running_mean + factor * mean
                running_var = (1 - factor) * running_var + factor * wide_x.var(axes, ddof=1)
            values = {"x": x, "dy": dy, "y": normalised * wide(weight) + wide(bias)}
            values |= {"dx": wide(weight) * wide(rstd) * through}
            values |= {"running_mean": running_mean, "running_var": running_var}
            if case.affine:
                values |= {"dweight": dweight, "dbias": dbias}
            tensors |= {f"{case.name}/{step}/{name}": value for name, value in values.items()}
        cases.append(asdict(case))
    save(path, tensors, cases=cases)

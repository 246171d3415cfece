"""Native TensorFlow, on one thread: the process that lib/host.mjs is for peers in JavaScript."""

import json
import os
import sys
import time

# This file's folder: `import tensorflow` would find this file.
del sys.path[0]
# What libraries print must not mix with the replies.
replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


class Host:
    def open(self):
        self.load()
        return {"title": f"tensorflow {self.tf.__version__} (native)"}

    def load(self):
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        self.tf = tf

    def prepare(self, folder):
        job, tensors = self.read(folder)
        kind = job["kind"].replace(" ", "_")
        self.work, self.note = getattr(self, kind)(job, tensors)
        return {"note": self.note}

    def read(self, folder):
        import numpy as np

        with open(os.path.join(folder, "job.json")) as file:
            job = json.load(file)
        return job, {
            name: np.fromfile(os.path.join(folder, name), np.float32).reshape(values["shape"])
            for name, values in job["tensors"].items()
        }

    def run(self, times):
        milliseconds = []
        for _ in range(times):
            started = time.perf_counter()
            self.last = self.work()
            milliseconds.append((time.perf_counter() - started) * 1e3)
        return {"milliseconds": milliseconds}

    def answers(self, folder):
        for name, values in self.last.items():
            values.numpy().astype("float32").tofile(os.path.join(folder, name))
        return {"names": list(self.last)}

    def start(self, folder):
        started = time.perf_counter()
        self.load()
        self.prepare(folder)
        for values in self.work().values():
            values.numpy()
        return {"milliseconds": (time.perf_counter() - started) * 1e3}

    def batchnorm(self, job, tensors):
        tf = self.tf
        if job["layout"] == "NCHW":
            # The fused op refuses channels-first on a CPU.
            axes, shape, note = [0, 2, 3], [1, -1, 1, 1], "tf.nn.moments and batch_normalization: no fused channels-first"
        else:
            axes, shape, note = None, [-1], None
        t = {
            name: tf.constant(values.reshape(shape) if values.ndim == 1 else values) for name, values in tensors.items()
        }
        epsilon = job["epsilon"]

        def normalize(x, gamma, beta, training):
            if axes is None:
                statistics = {} if training else {"mean": t["mean"], "variance": t["variance"]}
                y, _, _ = tf.compat.v1.nn.fused_batch_norm(
                    x, gamma, beta, epsilon=epsilon, is_training=training, **statistics
                )
            else:
                mean, variance = tf.nn.moments(x, axes, keepdims=True) if training else (t["mean"], t["variance"])
                y = tf.nn.batch_normalization(x, mean, variance, beta, gamma, epsilon)
            return tf.nn.relu(y) if job["relu"] else y

        @tf.function
        def forward(x, gamma, beta):
            return {"y": normalize(x, gamma, beta, job["pass"] != "inference")}

        @tf.function
        def both(x, gamma, beta, dy):
            with tf.GradientTape() as tape:
                tape.watch([x, gamma, beta])
                y = normalize(x, gamma, beta, True)
            dx, dgamma, dbeta = tape.gradient(y, [x, gamma, beta], dy)
            return {"dx": dx, "dgamma": dgamma, "dbeta": dbeta}

        parameters = t["x"], t["gamma"], t["beta"]
        if job["pass"] == "forward and backward":
            return lambda: both(*parameters, t["dy"]), note
        return lambda: forward(*parameters), note

    def network(self, job, tensors):
        import keras

        epsilon = job["epsilon"]
        model = keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                keras.layers.BatchNormalization(epsilon=epsilon),
                keras.layers.Conv2D(32, 3, activation="relu"),
                keras.layers.MaxPooling2D(2),
                keras.layers.BatchNormalization(epsilon=epsilon),
                keras.layers.Conv2D(64, 3, activation="relu"),
                keras.layers.MaxPooling2D(2),
                keras.layers.BatchNormalization(epsilon=epsilon),
                keras.layers.Flatten(),
                keras.layers.Dense(10, activation="softmax"),
            ]
        )
        model.set_weights([values for name, values in tensors.items() if name not in ("images", "labels")])
        return model

    def training(self, job, tensors):
        tf = self.tf
        model = self.network(job, tensors)
        import keras

        optimizer = keras.optimizers.Adam()
        optimizer.build(model.trainable_variables)
        x, y = tf.constant(tensors["images"]), tf.constant(tensors["labels"].astype("int32"))

        @tf.function
        def step(x, y):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, model(x, training=True)))
            optimizer.apply(tape.gradient(loss, model.trainable_variables))
            return {"loss": loss}

        return lambda: step(x, y), None

    def prediction(self, job, tensors):
        tf = self.tf
        w = {name: tf.constant(values) for name, values in self.fold(job, tensors).items()}
        x = tf.constant(tensors["images"])

        def block(x, name):
            y = tf.nn.conv2d(x, w[f"{name}_kernel"], 1, "VALID")
            return tf.nn.max_pool2d(tf.nn.relu(tf.nn.bias_add(y, w[f"{name}_bias"])), 2, 2, "VALID")

        @tf.function
        def predict(x):
            flat = tf.reshape(block(block(x, "conv1"), "conv2"), [x.shape[0], -1])
            return {"y": tf.nn.softmax(tf.linalg.matmul(flat, w["dense_kernel"]) + w["dense_bias"])}

        return lambda: predict(x), None

    def fold(self, job, tensors):
        """As fold() in lib/reference-model.mjs."""
        import numpy as np

        folded = {}
        for bn, layer in ("bn1", "conv1"), ("bn2", "conv2"), ("bn3", "dense"):
            gamma, beta, mean, variance = (
                tensors[f"{bn}_{name}"].astype(np.float64) for name in ("gamma", "beta", "mean", "variance")
            )
            a = gamma / np.sqrt(variance + job["epsilon"])
            kernel = tensors[f"{layer}_kernel"]
            # [..., channels, units], for the dense layer after its flattening too.
            split = kernel.reshape(-1, gamma.size, kernel.shape[-1])
            bias = tensors[f"{layer}_bias"] + np.einsum("kcu,c->u", split, beta - mean * a)
            folded[f"{layer}_kernel"] = (split * a[:, None]).reshape(kernel.shape).astype(np.float32)
            folded[f"{layer}_bias"] = bias.astype(np.float32)
        return folded


host = Host()
for line in sys.stdin:
    options = json.loads(line)
    try:
        reply = getattr(host, options.pop("command"))(**options)
    except Exception as error:
        reply = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(reply), file=replies, flush=True)

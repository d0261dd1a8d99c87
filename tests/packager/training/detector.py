"""Run by the interpreter of the environment `tf`: writes a small convolutional detector as a frozen GraphDef, nodes `image` to `grid`."""

import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1
random = np.random.default_rng(3)


def weights(*shape: int) -> np.ndarray:
    return random.normal(0, (2.0 / np.prod(shape[:-1])) ** 0.5, shape).astype(np.float32)


with tf.Graph().as_default() as graph:
    x = image = v1.placeholder(tf.float32, [None, 48, 48, 3], name="image")
    for depth in ((3, 8), (8, 16), (16, 16)):
        x = tf.nn.bias_add(tf.nn.conv2d(x, weights(3, 3, *depth), strides=2, padding="SAME"), weights(depth[1]))
        x = tf.nn.leaky_relu(x, 0.1)
    tf.identity(tf.nn.conv2d(x, weights(1, 1, 16, 14), strides=1, padding="SAME"), name="grid")
    Path(sys.argv[1]).write_bytes(graph.as_graph_def().SerializeToString())

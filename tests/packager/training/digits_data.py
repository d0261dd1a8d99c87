"""Run by the interpreter of the environment `sk`: writes the digits of scikit-learn as training and test set."""

import sys

import numpy as np
from sklearn.datasets import load_digits

digits = load_digits()
images = (digits.images / 16.0).astype(np.float32)[..., None]
order = np.random.default_rng(7).permutation(len(images))
images, labels = images[order], digits.target[order].astype(np.int64)
np.savez(sys.argv[1], image=images, labels=labels)

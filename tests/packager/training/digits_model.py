"""Run by the interpreter of the environment `tf`: trains a small CNN on the digits and exports it as a SavedModel."""

import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np

data, folder = sys.argv[1:]
keras.utils.set_random_seed(11)
with np.load(data) as archive:
    images, labels = archive["image"], archive["labels"]
layers = keras.layers
model = keras.Sequential(
    [
        layers.Input((8, 8, 1), name="image"),
        layers.Conv2D(16, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(32, 3, padding="same", activation="relu"),
        layers.Flatten(),
        layers.Dense(32, activation="relu"),
        layers.Dense(10, activation="softmax", name="probabilities"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy")
model.fit(images, labels, batch_size=32, epochs=12, verbose=0)
model.export(folder, verbose=False)

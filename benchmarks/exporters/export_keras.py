"""Keras applications with random weights, through tf2onnx: pictures (batch, height, width, 3), most with softmax.

    python export_keras.py FOLDER

Needs tensorflow-cpu and tf2onnx in an environment of its own.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="", KERAS_BACKEND="tensorflow")

import keras
import numpy as np
import tensorflow as tf
import tf2onnx

SIZE, CLASSES = 96, 10


def flatten_dense() -> keras.Model:
    """The network of every first tutorial: a flattened map and one dense layer."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((SIZE, SIZE, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(8, 3, strides=4, activation="relu"),
            layers.Conv2D(16, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )


def pooled_sigmoid() -> keras.Model:
    """Several classes at once."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((SIZE, SIZE, 3)),
            layers.Conv2D(16, 5, strides=4, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(CLASSES, activation="sigmoid"),
        ]
    )


def convolutional_head() -> keras.Model:
    """A 1x1 convolution over the map, averaged after it."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((SIZE, SIZE, 3)),
            layers.Conv2D(16, 5, strides=8, padding="same", activation="relu"),
            layers.Conv2D(CLASSES, 1),
            layers.GlobalAveragePooling2D(),
            layers.Softmax(),
        ]
    )


def hidden_layer() -> keras.Model:
    """A dense layer between the pooled map and the scores."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((SIZE, SIZE, 3)),
            layers.Conv2D(16, 5, strides=8, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(32, activation="relu"),
            layers.Dense(CLASSES),
        ]
    )


def application(name: str) -> keras.Model:
    """Return one of keras.applications."""
    return getattr(keras.applications, name)(weights=None, input_shape=(SIZE, SIZE, 3), classes=CLASSES)


APPLICATIONS = (
    "MobileNet",
    "MobileNetV2",
    "ResNet50V2",
    "DenseNet121",
    "EfficientNetB0",
    "Xception",
    "VGG16",
    "MobileNetV3Small",
    "ConvNeXtTiny",
)
OWN = (flatten_dense, pooled_sigmoid, convolutional_head, hidden_layer)


def main(folder: Path) -> None:
    """Write `tf2onnx-NETWORK.onnx` files."""
    folder.mkdir(parents=True, exist_ok=True)
    builders = {own.__name__: own for own in OWN} | {name: lambda name=name: application(name) for name in APPLICATIONS}
    for name, build in builders.items():
        keras.utils.set_random_seed(0)
        path = folder / f"tf2onnx-{name}.onnx"
        try:
            model = build()
            random = np.random.default_rng(0)
            for layer in model.layers:
                if isinstance(layer, keras.layers.BatchNormalization):
                    gamma, beta, mean, variance = layer.get_weights() if len(layer.get_weights()) == 4 else (None,) * 4
                    if gamma is not None:
                        layer.set_weights(
                            [gamma, beta, random.normal(0, 0.1, mean.shape), random.uniform(0.5, 1.5, variance.shape)]
                        )
            signature = [tf.TensorSpec((None, SIZE, SIZE, 3), tf.float32, name="input")]
            tf2onnx.convert.from_function(
                tf.function(partial(model, training=False)), signature, opset=17, output_path=str(path)
            )
            print(f"{path.name}: written", flush=True)
        except Exception as error:
            print(f"{path.name}: not exported: {' '.join(str(error).split())[:160]}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Networks of keras.applications, the smallest of each family: too slow for the test suite."""

import keras

from tests.corpus.program import Fit, labels, program, random

SIZES = {
    "ConvNeXtTiny": 32,
    "DenseNet121": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "InceptionResNetV2": 75,
    "InceptionV3": 75,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "NASNetMobile": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "VGG16": 32,
    "Xception": 71,
}
"""Height and width of the images by the name of the network: the smallest that it takes."""


def _application(name: str, size: int):
    def build():
        network = getattr(keras.applications, name)
        model = network(weights=None, include_top=False, pooling="avg", input_shape=(size, size, 3))
        model = keras.Sequential([model, keras.layers.Dense(4, "softmax")])
        model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
        return Fit(model, (random(8, size, size, 3), labels(4, 8)), {"batch_size": 2})

    build.__name__ = name
    return build


DIFFERS = {
    "InceptionResNetV2": "two plain trainings differ as well: the first step changes weights by many times their norm, "
    "which carries a last bit to all of them"
}
"""Why the bits of a network differ."""

for _name, _size in SIZES.items():
    program(f"keras.applications.{_name}", quick=False, differs=DIFFERS.get(_name))(_application(_name, _size))

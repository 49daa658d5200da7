"""Text classification with a transformer block, trained with `fit` on generated sentences.

Based on Keras' example of that name (keras.io/examples/nlp/text_classification_with_transformer). The last good or bad
word of a sentence decides its class. Lines that tapescope changes are marked with <--.
To run it: python examples/text_classification_with_transformer.py [--plain]
"""

import sys

import keras
import numpy as np
from keras import layers, ops

import tapescope

WORDS = 100
LENGTH = 20
WIDTH = 16
HEADS = 2


class TransformerBlock(layers.Layer):
    def __init__(self, rate=0.1, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(num_heads=HEADS, key_dim=WIDTH, name="attention")
        self.feed_forward = keras.Sequential(
            [layers.Dense(32, activation="relu", name="inner"), layers.Dense(WIDTH, name="outer")], name="feed_forward"
        )
        self.norm_1 = layers.LayerNormalization(epsilon=1e-6)
        self.norm_2 = layers.LayerNormalization(epsilon=1e-6)
        self.dropout_1 = layers.Dropout(rate)
        self.dropout_2 = layers.Dropout(rate)

    def call(self, inputs, training=False):
        attended = self.dropout_1(self.attention(inputs, inputs), training=training)
        x = self.norm_1(inputs + attended)
        return self.norm_2(x + self.dropout_2(self.feed_forward(x), training=training))


class TokenAndPositionEmbedding(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.tokens = layers.Embedding(WORDS, WIDTH, name="tokens")
        self.positions = layers.Embedding(LENGTH, WIDTH, name="positions")

    def call(self, x):
        return self.tokens(x) + self.positions(ops.arange(LENGTH))


def make_data(sentences=1024):
    """Generate sentences: words 1 to 3 are good, 4 to 6 are bad, all others are neutral."""
    rng = np.random.default_rng(0)
    texts = rng.integers(7, WORDS, [sentences, LENGTH])
    places = np.argsort(rng.random([sentences, LENGTH]))[:, :3]
    np.put_along_axis(texts, places, rng.integers(1, 7, places.shape), axis=1)
    labels = [line[np.flatnonzero(line < 7)[-1]] <= 3 for line in texts]
    return texts, np.array(labels, int)


def make_model():
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = TokenAndPositionEmbedding(name="embedding")(inputs)
    x = TransformerBlock(name="block")(x)
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling1D()(x))
    x = layers.Dropout(0.1)(layers.Dense(20, activation="relu", name="hidden")(x))
    return keras.Model(inputs, layers.Dense(2, activation="softmax", name="output")(x))


def train(measure=True, epochs=12, logdir="runs/transformer"):
    """Train; return the model, the loss of each epoch, and the accuracy on the validation data."""
    keras.utils.set_random_seed(1)
    x, y = make_data()
    model = make_model()
    optimizer = keras.optimizers.Adam(5e-3)
    # Without jit_compile=False, XLA would round the measured and the plain program differently.
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    callbacks = [tapescope.Monitor(logdir)] if measure else []  # <--
    history = model.fit(
        x,
        y,
        batch_size=64,
        epochs=epochs,
        validation_split=0.25,
        verbose=0,
        callbacks=callbacks,  # <-- was: no callbacks
    )
    return model, history.history["loss"], history.history["val_accuracy"][-1]


if __name__ == "__main__":
    print("validation accuracy", train(measure="--plain" not in sys.argv)[-1])

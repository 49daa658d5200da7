"""A training loop from scratch: a dense network on handwritten digits, with metrics and validation written out.

Based on Keras' guide of that name (keras.io/guides/writing_a_custom_training_loop_in_tensorflow). Lines that tapescope
changes are marked with <--. To run it: python examples/writing_a_training_loop_from_scratch.py [--plain]
"""

import sys

import keras
import tensorflow as tf
from sklearn.datasets import load_digits

import tapescope


def make_data():
    """Return batches of 8 x 8 pixels between 0 and 1 and labels: 1,500 digits for training, the rest for validation."""
    images, labels = load_digits(return_X_y=True)
    data = tf.data.Dataset.from_tensor_slices(((images / 16).astype("float32"), labels))
    return data.take(1500).shuffle(1500, seed=1).batch(64), data.skip(1500).batch(64)


def make_model():
    inputs = keras.Input((64,), name="digits")
    x = keras.layers.Dense(64, activation="relu", name="dense_1")(inputs)
    x = keras.layers.Dense(64, activation="relu", name="dense_2")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="predictions")(x))


def train(measure=True, epochs=8, logdir="runs/training_loop"):
    """Train; return the model, the loss of each step, and the accuracy on the validation data."""
    keras.utils.set_random_seed(1)
    train_data, validation_data = make_data()
    model = make_model()
    optimizer = keras.optimizers.Adam(1e-3)
    loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    train_accuracy = keras.metrics.SparseCategoricalAccuracy()
    validation_accuracy = keras.metrics.SparseCategoricalAccuracy()

    probe = tapescope.Probe(model)  # <--
    when = tapescope.every(10) if measure else tapescope.never()  # <--

    @tf.function
    def train_step(x, y, measure):
        with probe.tape(measure) as tape:  # <-- was: with tf.GradientTape() as tape:
            logits = model(x, training=True)
            loss = loss_fn(y, logits)
        gradients = tape.gradient(loss, model.trainable_weights)
        optimizer.apply(gradients, model.trainable_weights)
        train_accuracy.update_state(y, logits)
        return loss, tape.reading()  # <-- was: return loss

    @tf.function
    def test_step(x, y):
        validation_accuracy.update_state(y, model(x, training=False))

    losses = []
    with tapescope.Recorder(logdir, probe, when) as recorder:  # <--
        for epoch in range(epochs):
            for x, y in train_data:
                step = len(losses)
                loss, reading = train_step(x, y, when(step))
                losses.append(float(loss))
                recorder.write(step, reading, scalars={"loss": loss})  # <--
            for x, y in validation_data:
                test_step(x, y)
            accuracy = float(train_accuracy.result())
            validated = float(validation_accuracy.result())
            print(f"epoch {epoch}: loss {losses[-1]:.3f}, accuracy {accuracy:.3f}, validation accuracy {validated:.3f}")
            train_accuracy.reset_state()
            validation_accuracy.reset_state()
    return model, losses, validated


if __name__ == "__main__":
    print("validation accuracy", train(measure="--plain" not in sys.argv)[-1])

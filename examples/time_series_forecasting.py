"""Time series forecasting with an LSTM, trained with `fit` until the validation loss stops falling.

Based on TensorFlow's tutorial of that name (tensorflow.org/tutorials/structured_data/time_series), on generated
temperatures. Lines that tapescope changes are marked with <--.
To run it: python examples/time_series_forecasting.py [--plain]
"""

import sys

import keras
import numpy as np

import tapescope

HOURS = 24


def make_data(days=60):
    """Generate hourly temperatures with the time of day as sine and cosine: [windows, HOURS, 3], and the next hours."""
    rng = np.random.default_rng(0)
    hour = np.arange(24 * days)
    day = 2 * np.pi * hour / 24
    weather = np.convolve(rng.normal(size=len(hour) + 47), np.ones(48) / 7, "valid")
    temperature = np.sin(day - 2) + 0.5 * weather + 0.1 * rng.normal(size=len(hour))
    temperature = (temperature - temperature.mean()) / temperature.std()
    features = np.stack([temperature, np.sin(day), np.cos(day)], axis=1).astype("float32")
    windows = np.lib.stride_tricks.sliding_window_view(features, HOURS, axis=0).transpose(0, 2, 1)
    return windows[:-1], features[HOURS:, :1]


def make_model():
    return keras.Sequential(
        [
            keras.Input((HOURS, 3)),
            keras.layers.LSTM(16, return_sequences=True, name="lstm_1"),
            keras.layers.LSTM(16, name="lstm_2"),
            keras.layers.Dense(1, name="next_hour"),
        ]
    )


def train(measure=True, epochs=8, logdir="runs/time_series"):
    """Train; return the model, the loss of each epoch, and the mean absolute error on the last fifth of the time."""
    keras.utils.set_random_seed(1)
    x, y = make_data()
    model = make_model()
    split = len(x) * 4 // 5
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.MeanSquaredError(), metrics=["mean_absolute_error"])
    callbacks = [keras.callbacks.EarlyStopping(monitor="val_loss", patience=2)]
    callbacks += [tapescope.Monitor(logdir)] if measure else []  # <--
    history = model.fit(
        x[:split],
        y[:split],
        batch_size=64,
        epochs=epochs,
        validation_data=(x[split:], y[split:]),
        verbose=0,
        callbacks=callbacks,
    )
    return model, history.history["loss"], history.history["val_mean_absolute_error"][-1]


if __name__ == "__main__":
    print("mean absolute error", train(measure="--plain" not in sys.argv)[-1])

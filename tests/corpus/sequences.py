"""Programs for text, speech and series."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.corpus.program import FUSED, Fit, Loop, labels, program, random

TOKENS = labels(12, 32, 6)


class PositionalEmbedding(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.tokens, self.positions = layers.Embedding(12, 8), layers.Embedding(6, 8)

    def call(self, x):
        return self.tokens(x) + self.positions(ops.arange(ops.shape(x)[-1]))


class TransformerBlock(layers.Layer):
    def __init__(self, causal=False, **kwargs):
        super().__init__(**kwargs)
        self.attention, self.causal = layers.MultiHeadAttention(2, 4), causal
        self.ffn = keras.Sequential([layers.Dense(16, "relu"), layers.Dense(8)])
        self.first, self.second = layers.LayerNormalization(epsilon=1e-6), layers.LayerNormalization(epsilon=1e-6)
        self.drop1, self.drop2 = layers.Dropout(0.1, seed=1), layers.Dropout(0.1, seed=2)

    def call(self, x, training=None):
        x = self.first(x + self.drop1(self.attention(x, x, use_causal_mask=self.causal), training=training))
        return self.second(x + self.drop2(self.ffn(x), training=training))


@program("keras.io: Text classification with Transformer", unmeasured=FUSED, quick=False)
def text_transformer():
    inputs = keras.Input((6,), dtype="int32")
    x = TransformerBlock()(PositionalEmbedding()(inputs))
    x = layers.Dropout(0.1, seed=3)(layers.GlobalAveragePooling1D()(x))
    model = keras.Model(inputs, layers.Dense(2, "softmax")(layers.Dense(8, "relu")(x)))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    return Fit(model, (TOKENS, TOKENS[:, 0] % 2))


@program("keras.io: Text generation with a miniature GPT", unmeasured=FUSED, quick=False)
def miniature_gpt():
    inputs = keras.Input((6,), dtype="int32")
    x = TransformerBlock(causal=True)(PositionalEmbedding()(inputs))
    model = keras.Model(inputs, [layers.Dense(12)(x), x])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss=[loss, None], jit_compile=False)
    return Fit(model, tf.data.Dataset.from_tensor_slices((TOKENS, np.roll(TOKENS, -1, 1))).batch(8))


@program("keras.io: Bidirectional LSTM on IMDB", quick=False)
def bidirectional_lstm():
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(12, 8, mask_zero=True)(inputs)
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(x)
    x = layers.Bidirectional(layers.LSTM(4))(x)
    model = keras.Model(inputs, layers.Dense(1, "sigmoid")(x))
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"], jit_compile=False)
    return Fit(model, (TOKENS, TOKENS[:, 0] % 2))


@program("keras.io: Character-level recurrent sequence-to-sequence model", quick=False)
def character_seq2seq():
    encoder_inputs, decoder_inputs = keras.Input((None, 5)), keras.Input((None, 5))
    _, h, c = layers.LSTM(6, return_state=True)(encoder_inputs)
    x, _, _ = layers.LSTM(6, return_sequences=True, return_state=True)(decoder_inputs, initial_state=[h, c])
    model = keras.Model([encoder_inputs, decoder_inputs], layers.Dense(5, "softmax")(x))
    model.compile("rmsprop", "categorical_crossentropy", jit_compile=False)
    one_hot = np.eye(5, dtype="float32")[labels(5, 32, 4)]
    data = tf.data.Dataset.from_tensor_slices(((one_hot, one_hot), np.roll(one_hot, -1, 1))).batch(8)
    return Fit(model, data)


@program("TensorFlow tutorial: Neural machine translation with attention", quick=False)
def translation_with_attention():
    embed, target_embed = layers.Embedding(12, 8, name="source"), layers.Embedding(12, 8, name="target")
    encoder = layers.GRU(8, return_sequences=True, return_state=True, name="encoder")
    decoder = layers.GRUCell(8, name="decoder")
    attention, out = layers.AdditiveAttention(name="attention"), layers.Dense(12, name="out")

    class Translator(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = [embed, target_embed, encoder, decoder, attention, out]

        def call(self, inputs):
            source, target = inputs
            memory, state = encoder(embed(source))
            logits = []
            for t in range(target.shape[1]):  # unrolled, with the attention's context in each step
                context = attention([state[:, None], memory])[:, 0]
                token = target_embed(target[:, t])
                state, _ = decoder(ops.concatenate([token, context], -1), [state])
                logits.append(out(state))
            return ops.stack(logits, 1)

    model, optimizer = Translator(), keras.optimizers.Adam()
    model([TOKENS[:8, :4], TOKENS[:8, 3:]])
    loss_function = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")

    def step(tape, source, target):
        with tape() as t:
            logits = model([source, target[:, :-1]], training=True)
            mask = tf.cast(target[:, 1:] != 0, tf.float32)
            loss = tf.reduce_sum(loss_function(target[:, 1:], logits) * mask) / tf.reduce_sum(mask)
        gradients = t.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    return Loop(model, step, [(TOKENS[i : i + 8, :4], TOKENS[i : i + 8, 2:]) for i in range(0, 32, 8)])


@program(
    "keras.io: English-to-Spanish translation with a sequence-to-sequence Transformer", unmeasured=FUSED, quick=False
)
def translation_transformer():
    source, target = keras.Input((6,), dtype="int32", name="source"), keras.Input((6,), dtype="int32", name="target")
    memory = TransformerBlock(name="encoder")(PositionalEmbedding(name="source_embedding")(source))
    x = TransformerBlock(causal=True, name="decoder")(PositionalEmbedding(name="target_embedding")(target))
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4, name="cross")(x, memory))
    model = keras.Model({"source": source, "target": target}, layers.Dense(12, "softmax")(x))
    model.compile("rmsprop", keras.losses.SparseCategoricalCrossentropy(ignore_class=0), jit_compile=False)
    return Fit(
        model, tf.data.Dataset.from_tensor_slices(({"source": TOKENS, "target": TOKENS}, TOKENS[:, ::-1])).batch(8)
    )


@program("keras.io: End-to-end masked language modeling with BERT", unmeasured=FUSED, quick=False)
def masked_language_model():
    class MaskedLanguageModel(keras.Model):
        def train_step(self, inputs):
            features, targets, weights = inputs
            with tf.GradientTape() as tape:
                predictions = self(features, training=True)
                loss = loss_fn(targets, predictions, sample_weight=weights)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            tracker.update_state(loss, sample_weight=weights)
            return {"loss": tracker.result()}

    loss_fn, tracker = keras.losses.SparseCategoricalCrossentropy(reduction=None), keras.metrics.Mean(name="loss")
    inputs = keras.Input((6,), dtype="int32")
    x = TransformerBlock()(PositionalEmbedding()(inputs))
    model = MaskedLanguageModel(inputs, layers.Dense(12, "softmax", name="mlm_cls")(x))
    model.compile(keras.optimizers.Adam(), jit_compile=False)
    weights = (random(32, 6) > 0.5).astype("float32")
    return Fit(model, tf.data.Dataset.from_tensor_slices((TOKENS, TOKENS, weights)).batch(8))


@program("keras.io: Automatic Speech Recognition using CTC", quick=False)
def speech_ctc():
    def loss(y_true, y_pred):
        frames = ops.tile(ops.shape(y_pred)[1:2], [ops.shape(y_pred)[0]])
        length = ops.tile(ops.shape(y_true)[1:2], [ops.shape(y_true)[0]])
        return ops.ctc_loss(y_true, y_pred, length, frames, mask_index=0)

    inputs = keras.Input((16, 8))
    x = layers.Reshape((16, 8, 1))(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3, (1, 2), "same", use_bias=False)(x)))
    x = layers.Reshape((16, 16))(x)
    x = layers.Bidirectional(layers.GRU(4, return_sequences=True, reset_after=True))(x)
    x = layers.Dropout(0.5, seed=1)(layers.ReLU()(layers.Dense(8)(x)))
    model = keras.Model(inputs, layers.Dense(6)(x))
    model.compile(keras.optimizers.Adam(1e-4), loss, jit_compile=False)
    return Fit(model, (random(32, 16, 8), 1 + labels(5, 32, 3)))


@program("keras.io: Timeseries classification from scratch", quick=False)
def timeseries_convolution():
    x = inputs = keras.Input((12, 1))
    for _ in range(3):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv1D(4, 3, padding="same")(x)))
    model = keras.Model(inputs, layers.Dense(2, "softmax")(layers.GlobalAveragePooling1D()(x)))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["sparse_categorical_accuracy"], jit_compile=False)
    callbacks = [keras.callbacks.ReduceLROnPlateau("loss", 0.5, 1), keras.callbacks.EarlyStopping("loss", patience=5)]
    return Fit(model, (random(32, 12, 1), labels(2, 32)), {"callbacks": callbacks})


@program("keras.io: Next-Frame Video Prediction with Convolutional LSTMs", quick=False)
def convolutional_lstm():
    inputs = keras.Input((3, 6, 6, 1))
    x = layers.ConvLSTM2D(4, 3, padding="same", return_sequences=True, activation="relu")(inputs)
    model = keras.Model(inputs, layers.Conv3D(1, 3, activation="sigmoid", padding="same")(x))
    model.compile("adam", "binary_crossentropy", jit_compile=False)
    frames = (random(16, 3, 6, 6, 1) > 0).astype("float32")
    return Fit(model, (frames, np.roll(frames, -1, 1)), {"batch_size": 4})

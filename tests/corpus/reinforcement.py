"""Programs that learn by reinforcement: the environment is a random walk of our own."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from tests.corpus.program import Loop, labels, program, random


def policy_and_value(actions=2):
    inputs = keras.Input((4,))
    common = layers.Dense(8, "relu", name="common")(inputs)
    action = layers.Dense(actions, "softmax", name="action")(common)
    return keras.Model(inputs, [action, layers.Dense(1, name="critic")(common)])


@program("keras.io: Actor Critic Method", quick=False)
def actor_critic():
    model, optimizer = policy_and_value(), keras.optimizers.Adam(0.01)
    huber = keras.losses.Huber()
    random_actions = np.random.default_rng(3)

    def step(tape, states):
        log_probabilities, values = [], []
        with tape() as t:
            for state in states:  # an episode, each of another length
                probabilities, value = model(tf.convert_to_tensor(state[None]))
                action = random_actions.choice(2, p=np.squeeze(probabilities))
                log_probabilities.append(tf.math.log(probabilities[0, action]))
                values.append(value[0, 0])
            returns = np.cumsum(np.ones(len(states)))[::-1]
            returns = ((returns - returns.mean()) / (returns.std() + 1e-7)).astype("float32")
            history = list(zip(log_probabilities, values, returns, strict=True))
            actor = [-p * (r - v) for p, v, r in history]
            critic = [huber(tf.expand_dims(v, 0), tf.expand_dims(r, 0)) for _, v, r in history]
            loss = sum(actor) + sum(critic)
        gradients = t.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    return Loop(model, step, [(random(n, 4, seed=n),) for n in (5, 3, 7, 4)], eager=True)


@program(
    "TensorFlow tutorial: Playing CartPole with the Actor-Critic method",
    says="does not measure layer|measures no layer",
    unmeasured="inside a graph of its own",
)
def actor_critic_in_a_graph():
    common, actor, critic = layers.Dense(8, "relu", name="common"), layers.Dense(2, name="actor"), layers.Dense(1)

    class ActorCritic(keras.Model):
        def __init__(self):
            super().__init__()
            self.common, self.actor, self.critic = common, actor, critic

        def call(self, inputs):
            x = self.common(inputs)
            return self.actor(x), self.critic(x)

    model, optimizer = ActorCritic(), keras.optimizers.Adam(0.01)
    model(tf.zeros([1, 4]))

    def run_episode(state, length):
        probabilities = tf.TensorArray(tf.float32, 0, dynamic_size=True)
        values = tf.TensorArray(tf.float32, 0, dynamic_size=True)
        shape = state.shape
        for t in tf.range(length):
            logits, value = model(tf.expand_dims(state, 0))
            action = tf.argmax(logits[0])
            values = values.write(t, tf.squeeze(value))
            probabilities = probabilities.write(t, tf.nn.softmax(logits)[0, action])
            state = 0.9 * state + 0.1 * tf.cast(action, tf.float32)
            state.set_shape(shape)
        return probabilities.stack(), values.stack()

    def step(tape, state, length):
        with tape() as t:
            probabilities, values = run_episode(state, length)
            advantage = tf.cast(tf.range(length, 0, -1), tf.float32) / 5.0 - values
            loss = -tf.reduce_sum(tf.math.log(probabilities) * advantage) + tf.reduce_sum(advantage**2)
        gradients = t.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    lengths = (5, 3, 7, 4)
    return Loop(model, step, [(tf.constant(random(4, seed=n)), tf.constant(n)) for n in lengths])


@program("keras.io: Deep Q-Learning for Atari Breakout", quick=False)
def dqn():
    def network():
        parts = [keras.Input((8, 8, 2)), layers.Conv2D(4, 3, 2, activation="relu"), layers.Flatten()]
        return keras.Sequential([*parts, layers.Dense(8, "relu"), layers.Dense(3, "linear")])

    model, target = network(), network()
    optimizer, huber = keras.optimizers.Adam(2.5e-4, clipnorm=1.0), keras.losses.Huber()

    def step(tape, states, following, actions, rewards):
        future = tf.reduce_max(target(following), axis=1)
        updated = rewards + 0.99 * future
        masks = tf.one_hot(actions, 3)
        with tape() as t:
            q_action = tf.reduce_sum(model(states) * masks, axis=1)
            loss = huber(updated, q_action)
        gradients = t.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    batches = [
        (random(8, 8, 8, 2, seed=n), random(8, 8, 8, 2, seed=n + 9), labels(3, 8, seed=n), random(8, seed=n))
        for n in range(4)
    ]
    return Loop(model, step, batches)


@program("keras.io: Deep Deterministic Policy Gradient", quick=False)
def ddpg():
    last = keras.initializers.RandomUniform(-0.003, 0.003, seed=4)
    inputs = keras.Input((3,))
    actor = keras.Model(inputs, layers.Dense(1, "tanh", kernel_initializer=last)(layers.Dense(8, "relu")(inputs)) * 2)
    state, action = keras.Input((3,)), keras.Input((1,))
    joined = layers.Concatenate()([layers.Dense(8, "relu")(state), layers.Dense(4, "relu")(action)])
    critic = keras.Model([state, action], layers.Dense(1)(layers.Dense(8, "relu")(joined)))
    critic_optimizer, actor_optimizer = keras.optimizers.Adam(0.002), keras.optimizers.Adam(0.001)

    def step(tape, states, actions, targets):
        with tape() as c:
            critic_loss = ops.mean(ops.square(targets - critic([states, actions], training=True)))
        gradients = c.gradient(critic_loss, critic.trainable_variables)
        critic_optimizer.apply_gradients(zip(gradients, critic.trainable_variables, strict=True))
        with tape() as a:
            actor_loss = -ops.mean(critic([states, actor(states, training=True)], training=True))
        gradients = a.gradient(actor_loss, actor.trainable_variables)
        actor_optimizer.apply_gradients(zip(gradients, actor.trainable_variables, strict=True))

    batches = [(random(8, 3, seed=n), random(8, 1, seed=n + 9), random(8, 1, seed=n + 18)) for n in range(4)]
    return Loop([actor, critic], step, batches)


@program("keras.io: Proximal Policy Optimization")
def ppo():
    def mlp(outputs):
        return keras.Sequential(
            [keras.Input((4,)), layers.Dense(8, "tanh"), layers.Dense(8, "tanh"), layers.Dense(outputs)]
        )

    actor, critic = mlp(2), mlp(1)
    actor_optimizer, critic_optimizer = keras.optimizers.Adam(3e-3), keras.optimizers.Adam(1e-2)

    def log_probability(logits, actions):
        return ops.sum(ops.one_hot(actions, 2) * ops.log_softmax(logits), axis=1)

    def step(tape, states, actions, old, advantages, returns):
        with tape() as t:
            ratio = ops.exp(log_probability(actor(states), actions) - old)
            least = ops.where(advantages > 0, 1.2 * advantages, 0.8 * advantages)
            policy_loss = -ops.mean(ops.minimum(ratio * advantages, least))
        gradients = t.gradient(policy_loss, actor.trainable_variables)
        actor_optimizer.apply_gradients(zip(gradients, actor.trainable_variables, strict=True))
        with tape() as v:
            value_loss = ops.mean((returns - critic(states)) ** 2)
        gradients = v.gradient(value_loss, critic.trainable_variables)
        critic_optimizer.apply_gradients(zip(gradients, critic.trainable_variables, strict=True))

    batches = [
        (
            random(8, 4, seed=n),
            labels(2, 8, seed=n),
            -abs(random(8, seed=n)),
            random(8, seed=n + 5),
            random(8, 1, seed=n),
        )
        for n in range(4)
    ]
    return Loop([actor, critic], step, batches)

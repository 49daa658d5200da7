"""An independent float64 oracle in NumPy, for a chain of dense layers: both passes, and every column by definition."""

from math import erf
from typing import NamedTuple

import numpy as np

SATURATED_SHARE = 0.01


def _selu(z):
    scale = 1.0507009873554805
    alpha = 1.6732632423543772
    return scale * np.where(z > 0, z, alpha * np.expm1(z)), scale * np.where(z > 0, 1, alpha * np.exp(z))


def _gelu(z):
    cdf = 0.5 * (1 + np.vectorize(erf)(z / np.sqrt(2)))
    return z * cdf, cdf + z * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)


def _sigmoid(z):
    a = 1 / (1 + np.exp(-z))
    return a, a * (1 - a)


FUNCTIONS = {
    "linear": (lambda z: (z, np.ones_like(z)), 1.0),
    "relu": (lambda z: (np.maximum(z, 0), (z > 0).astype(float)), 1.0),
    "leaky_relu": (lambda z: (np.where(z > 0, z, 0.2 * z), np.where(z > 0, 1, 0.2)), 1.0),
    "elu": (lambda z: (np.where(z > 0, z, np.expm1(z)), np.where(z > 0, 1, np.exp(z))), 1.0),
    "selu": (_selu, 1.0507009873554805 * 1.6732632423543772),
    "sigmoid": (_sigmoid, 0.25),
    "tanh": (lambda z: (np.tanh(z), 1 - np.tanh(z) ** 2), 1.0),
    "softplus": (lambda z: (np.log1p(np.exp(z)), _sigmoid(z)[0]), 1.0),
    "softsign": (lambda z: (z / (1 + np.abs(z)), 1 / (1 + np.abs(z)) ** 2), 1.0),
    "hard_sigmoid": (lambda z: (np.clip((z + 3) / 6, 0, 1), ((z > -3) & (z < 3)) / 6), 1 / 6),
    "relu6": (lambda z: (np.clip(z, 0, 6), ((z > 0) & (z < 6)).astype(float)), 1.0),
    "gelu": (_gelu, 1.1289),
}
"""By name: the function from z to a and da/dz, and the largest |da/dz|."""


class Layer(NamedTuple):
    """One layer's tensors, and the gradients of the loss with respect to them."""

    input: np.ndarray
    z: np.ndarray
    a: np.ndarray
    derivative: np.ndarray
    d_input: np.ndarray
    d_z: np.ndarray
    d_a: np.ndarray
    d_kernel: np.ndarray
    d_bias: np.ndarray


def chain(x, y, weights, activations) -> tuple[float, list[Layer]]:
    """Return the mean squared error over all elements of a chain of dense layers, and the layers in forward order."""
    weights = [w.astype(np.float64) for w in weights]
    a = x.astype(np.float64)
    forward = []
    for kernel, bias, name in zip(weights[::2], weights[1::2], activations, strict=True):
        z = a @ kernel + bias
        output, derivative = FUNCTIONS[name][0](z)
        forward.append((a, z, output, derivative, kernel))
        a = output
    loss = np.mean((a - y) ** 2)
    d_a = 2 * (a - y) / a.size
    layers = []
    for layer_input, z, output, derivative, kernel in reversed(forward):
        d_z = d_a * derivative
        d_input = d_z @ kernel.T
        layers.append(
            Layer(
                input=layer_input,
                z=z,
                a=output,
                derivative=derivative,
                d_input=d_input,
                d_z=d_z,
                d_a=d_a,
                d_kernel=layer_input.T @ d_z,
                d_bias=d_z.sum(0),
            )
        )
        d_a = d_input
    return loss, layers[::-1]


def is_saturated(layer: Layer, activation: str) -> np.ndarray:
    """Return which elements of a layer's output are saturated, bool of its shape."""
    return np.abs(layer.derivative) < SATURATED_SHARE * FUNCTIONS[activation][1]


def layer_columns(layer: Layer, activation: str, is_first: bool) -> dict[str, float]:
    """Return the layers' columns; the first layer has no gradient with respect to its input, which is data."""
    norm = np.linalg.norm
    return {
        "activation_mean": layer.a.mean(),
        "activation_std": layer.a.std(),
        "activation_min": layer.a.min(),
        "activation_max": layer.a.max(),
        "activation_zero": np.mean(layer.a == 0),
        "activation_nonfinite": 0.0,
        "saturated": np.mean(is_saturated(layer, activation)),
        "delta_norm": norm(layer.d_a),
        "flow_gate": np.log10(norm(layer.d_z) / norm(layer.d_a)),
        "flow_weight": np.nan if is_first else np.log10(norm(layer.d_input) / norm(layer.d_z)),
        "flow_between": np.nan if is_first else 0.0,  # in a chain a layer's input is the output of the one before
    }


def variable_columns(gradient: np.ndarray, before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Return the variables' columns, without those that need several replicas."""
    weight_norm = np.linalg.norm(before.astype(np.float64))
    return {
        "gradient_norm": np.linalg.norm(gradient),
        "applied_norm": np.linalg.norm(gradient),
        "weight_norm": weight_norm,
        "gradient_max": np.abs(gradient).max(),
        "gradient_zero": np.mean(gradient == 0),
        "gradient_nonfinite": 0.0,
        "update_ratio": np.linalg.norm(after.astype(np.float64) - before) / weight_norm,
        "update_norm": np.linalg.norm(after.astype(np.float64) - before),
    }


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Return the cosine between two tensors."""
    a, b = (t.astype(np.float64).ravel() for t in (x, y))
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def stable_rank(matrix: np.ndarray) -> float:
    """Return the stable rank of a matrix, by its singular values."""
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    return np.sum(values**2) / values[0] ** 2


def adam_moments(gradient: np.ndarray) -> tuple[float, float]:
    """Return the norms of Adam's moments after its first step."""
    return np.linalg.norm(0.1 * gradient), np.linalg.norm(0.001 * gradient**2)


def histogram(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return counts of float32 elements by sign and magnitude, found by searching the edges."""
    side = (len(edges) - 2) // 2
    positive = edges[side + 1 :]
    x = x.astype(np.float32).ravel()
    magnitude = np.minimum(np.searchsorted(positive, np.abs(x).astype(np.float64), side="right"), side)
    index = np.where(np.signbit(x), side - magnitude, side + magnitude)
    return np.bincount(index, minlength=len(edges) - 1)


def layer_norm(x, epsilon=1e-3):
    """Return a layer normalization over the last axis, before its weights."""
    deviations = x - x.mean(-1, keepdims=True)
    return deviations / np.sqrt(np.mean(deviations**2, -1, keepdims=True) + epsilon)


def attention_columns(query, key, allowed, in_use=None, is_self=True) -> dict:
    """Return the columns of the heads of a layer, query by query.

    Args:
      query: [B, T, N, D].
      key: [B, S, N, D].
      allowed: where each query may look, broadcastable to [B, N, T, S].
      in_use: which keys are not padding, [B, S].
      is_self: whether the queries are of the same tokens. Those that are padding do not count.
    """
    query, key = query.astype(np.float64), key.astype(np.float64)
    examples, queries, heads, features = query.shape
    keys = key.shape[1]
    allowed = np.broadcast_to(allowed, [examples, heads, queries, keys])
    stride = -(-keys // queries)
    found: dict = {}
    for n in range(heads):
        logits, entropies, firsts, paddings, nonfinite = [], [], [], [], 0
        for b in range(examples):
            for t in range(queries):
                with np.errstate(invalid="ignore"):
                    of_query = key[b, :, n] @ query[b, t, n] / np.sqrt(features)
                positions = np.flatnonzero(allowed[b, n, t])
                finite = np.isfinite(of_query[positions])
                nonfinite += int((~finite).sum())
                logits.extend(of_query[positions][finite])
                is_padding = is_self and in_use is not None and not in_use[b, t * stride]
                if len(positions) < 2 or not finite.all() or is_padding:
                    continue
                p = np.exp(of_query[positions] - of_query[positions].max())
                p /= p.sum()
                entropies.append(-np.sum(p[p > 0] * np.log(p[p > 0])) / np.log(len(positions)))
                first = 0 if in_use is None else np.argmax(in_use[b])
                firsts.append(p[positions == first].sum())
                paddings.append(np.nan if in_use is None else p[~in_use[b][positions]].sum())
        values = (max(logits), np.mean(entropies), np.mean(firsts), np.mean(paddings), nonfinite)
        names = ("logit_max", "entropy", "first", "padding", "nonfinite")
        for name, value in zip(names, values, strict=True):
            found.setdefault(f"attention_{name}", []).append(value)
    return found

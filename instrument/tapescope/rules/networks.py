"""Which networks a step trains, as far as its layers tell."""

import numpy as np

from tapescope.rules.record_view import RunLayout


def are_several_networks(layout: RunLayout) -> bool:
    """Return whether a step trains networks with losses of their own, as a GAN's, which hold each other level.

    No loss is known then, and either one network is given what the other makes, or they are not connected.
    """
    return not layout.objectives and (_is_adversarial(layout) or _are_unconnected(layout))


def _are_unconnected(layout: RunLayout) -> bool:
    """Return whether there are trained layers which neither feed nor are fed by the others, nor share variables."""
    groups, variables = layout.owned
    parts: list[set[int]] = []
    for layer in range(layout.layer_count):
        near = {layer, layout.source[layer], int(layout.reader[layer])} - {-1}
        near |= set(groups[np.isin(variables, variables[groups == layer])].tolist())
        touched = [part for part in parts if part & near]
        parts = [part for part in parts if not part & near] + [near.union(*touched)]
    trained = set(groups.tolist())
    return sum(bool(part & trained) for part in parts) > 1


def own_variables(layout: RunLayout) -> list[frozenset[int]]:
    """Return the indices of each layer's own variables."""
    groups, variables = layout.owned
    return [frozenset(variables[groups == layer].tolist()) for layer in range(layout.layer_count)]


def _is_adversarial(layout: RunLayout) -> bool:
    """Return whether layers are given both the data and what other layers made, as the discriminator of a GAN.

    A layer that is called again on what it made itself, as a cell that is unrolled, is not meant.
    """
    own = own_variables(layout)
    of_data = {own[layer] for layer in range(layout.layer_count) if layout.source[layer] < 0}
    for layer in range(layout.layer_count):
        source = layout.source[layer]
        if not own[layer] or source < 0 or own[layer] not in of_data:
            continue
        while source >= 0 and not own[source] & own[layer]:
            source = layout.source[source]
        if source < 0:
            return True
    return False

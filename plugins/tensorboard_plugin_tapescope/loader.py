"""Loads the tab into TensorBoard. It imports little, because an error here would end TensorBoard."""

import logging

from tensorboard.plugins import base_plugin

logger = logging.getLogger(__name__)

NAME = "tapescope"  # metadata.PLUGIN_NAME; importing metadata here could fail

KEPT_RECORDS = 1000
"""Records of a tag that TensorBoard keeps. A heatmap draws 512 of them, and the histograms of 200 layers take 0.3 MB a
record. `--samples_per_plugin=tapescope=N` changes it, with 0 for all."""


class Loader(base_plugin.TBLoader):
    """Loads the Gradients tab, or logs why it cannot be loaded."""

    def fix_flags(self, flags):
        """Keep KEPT_RECORDS records of a tag, unless the user gives a number; TensorBoard's default is 100."""
        if getattr(flags, "samples_per_plugin", None) is not None:
            flags.samples_per_plugin.setdefault(NAME, KEPT_RECORDS)

    def load(self, context):
        """Return the plugin, or None if something that it needs cannot be imported."""
        try:
            from tensorboard_plugin_tapescope.plugin import GradientsPlugin

            return GradientsPlugin(context)
        except Exception as error:  # the other tabs must keep working, whatever the error
            logger.warning("The Gradients tab (tapescope) is off: %s: %s", type(error).__name__, error)
            return None

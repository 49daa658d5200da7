"""What TensorBoard imports at start: as little as possible, since a failure here would take TensorBoard down."""

import logging

from tensorboard.plugins import base_plugin

logger = logging.getLogger(__name__)

NAME = "tapescope"  # metadata.PLUGIN_NAME, which can't be imported here: loading must not fail
SAMPLES = 1000
"""Records of a tag that TensorBoard keeps. A heatmap draws 512 of them, and the histograms of 200 layers are 0.3 MB
a record. `--samples_per_plugin=tapescope=N` changes it, with 0 for all."""


class Loader(base_plugin.TBLoader):
    """Loads the Gradients tab, or says in the log why there is none."""

    def fix_flags(self, flags):
        """Keeps 1,000 records of a tag where the user asks for no other number; TensorBoard's own default is 100."""
        if getattr(flags, "samples_per_plugin", None) is not None:
            flags.samples_per_plugin.setdefault(NAME, SAMPLES)

    def load(self, context):
        """The plugin, or None where something that it needs can't be imported."""
        try:
            from tensorboard_plugin_tapescope.plugin import GradientsPlugin

            return GradientsPlugin(context)
        except Exception as error:  # whatever it is, the other tabs must go on
            logger.warning("The Gradients tab (tapescope) is off: %s: %s", type(error).__name__, error)
            return None

"""A package of one's own for `tapescope-train`: a model, its data, a loss and a metric; see examples/README.md."""

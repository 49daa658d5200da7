"""One small run for each version of the wire contract."""

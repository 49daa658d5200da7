"""Whole programs in the form in which they are written, with `fit`, and what the rules say about them."""

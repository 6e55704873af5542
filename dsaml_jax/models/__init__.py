"""Flax modules of the DSAML model. None of them knows of meta-learning."""

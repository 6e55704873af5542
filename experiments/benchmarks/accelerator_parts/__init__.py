"""The parts of `accelerator.py`, one module each, and what they share: sizes, counts, and a report that survives a cut."""

"""The embedded corpus: composed music and simulated listeners, written in DEAM's own layout."""

from data_prep.synthetic.corpus import PROVENANCE, read_synthetic, write_corpus

__all__ = ["PROVENANCE", "read_synthetic", "write_corpus"]

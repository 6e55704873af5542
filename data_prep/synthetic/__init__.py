"""The embedded corpus: composed music and simulated listeners, written in DEAM's own layout."""

from data_prep.synthetic.corpus import write_corpus

__all__ = ["write_corpus"]

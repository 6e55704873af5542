"""Sound and corpora to features and TFDS shards. Nothing here imports `dsaml_jax`.

The way of the data: a corpus on disk (`deam`, or `synthetic`, which writes DEAM's layout) becomes
an :class:`~data_prep.base.AnnotatedCorpus`; `audio` and `features` turn each song into arrays;
`shards` writes them as a TFDS dataset and reads it back as one flat :class:`~data_prep.shards.Corpus`.
"""

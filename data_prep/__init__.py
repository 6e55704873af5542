"""Sound and corpora to features and TFDS shards. Nothing here imports `dsaml_jax`.

The way of the data: a reader (`deam`, `pmemo`, `vgmidi`, `merp`, `folder`, `wide`; `synthetic` writes DEAM's layout) gives an
:class:`~data_prep.base.AnnotatedCorpus`; `validation` says which of its sound files can be used; `audio`,
`features`, `analysis` and `imagebind` turn a song into arrays; `examples` and `writing` put them into shards,
over processes or Apache Beam (`beam`); `dataset` decides what has to be written and describes the result by
`statistics`, `listeners` and `card`; `shards` reads it back as one flat :class:`~data_prep.shards.Corpus`.
:func:`data_prep.prepare.prepare` is all of it in one call.
"""

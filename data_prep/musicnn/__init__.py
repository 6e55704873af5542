"""MSD_musicnn, a tagger that has heard the Million Song Dataset (Pons and Serra 2019): spectrogram, network and weights.

The weights are under the ISC licence and come with this package (`LICENSE.txt` beside them).
"""

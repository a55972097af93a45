"""Compiled forward passes, the encoder of a pair, zero-shot classifiers, and `ClipPipeline`.

Importing this package imports no Keras.
"""

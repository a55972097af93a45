"""Evaluation of pairs: zero-shot classification, retrieval, linear probes, and their metrics.

Importing this package imports no Keras.
"""

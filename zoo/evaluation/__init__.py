"""How well a pair reads: zero-shot classification, retrieval, linear probes, and the formulas behind them.

Importing this package imports no Keras.
"""

"""Models as compiled functions of arrays, and the pipeline around a pair. Importing this package imports no Keras."""

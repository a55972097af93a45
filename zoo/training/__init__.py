"""Training that survives: contrastive pairs and classifiers, on data that is dirty and machines that die.

A run is a function of its arguments: batches follow from (seed, epoch, step), everything else is in the checkpoint, so
that a run killed anywhere and resumed ends with the weights, bit for bit, of one that was left alone.
"""

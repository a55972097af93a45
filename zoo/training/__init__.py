"""Training of pairs, classifiers and masked autoencoders, on imperfect data and machines that may stop.

A run is a function of its config: batches follow from (seed, epoch, step), and checkpoints hold everything else. A run
that was killed and resumed ends with bit for bit the same weights.
"""

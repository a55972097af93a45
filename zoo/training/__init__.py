"""Training of CLIP models, classifiers and masked autoencoders that tolerates unreadable data and interruptions.

A run is determined by its config: batches are functions of (seed, epoch, step), and checkpoints hold all other state.
A run that was killed and resumed ends with bit for bit the same weights.
"""

"""One file a tower: each builder gives a `keras.Model` from one input to (B, D) and knows nothing of the other side."""

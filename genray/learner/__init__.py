"""Training: the encoder, its objectives, the training loop, and its side of Ray Train."""

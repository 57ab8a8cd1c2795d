"""gradstep beside torch, Keras, optax and the textbook: the same steps, to 1e-12."""

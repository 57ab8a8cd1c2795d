"""Parity with torch, Keras, optax and textbooks: the same steps, to 1e-12."""

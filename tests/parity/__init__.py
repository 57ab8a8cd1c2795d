"""Parity with torch, Keras, optax and textbooks: the same steps and schedules, to 1e-12."""

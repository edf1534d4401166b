"""Replay of recorded steps of official code: `python -m wsimil.testing.parity PATH...`.

A recording is a file `*.npz` that holds a configuration, the official state, the inputs, every random draw in the order in which
it was consumed, and the outputs, losses and gradients. A replay builds our method from the official state, hands it the recorded
draws through the `StepContext` it always draws from, and compares everything that the file expects: a quantity of the file that
no replay compared is a failure too.
"""

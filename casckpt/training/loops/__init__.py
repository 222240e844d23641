"""Loops over epochs, steps and rounds: when they save, what they keep, where a pass stands."""

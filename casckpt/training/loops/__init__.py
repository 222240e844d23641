"""Loops: over epochs, steps and rounds; when they save, what they keep, and where a pass over data stands."""

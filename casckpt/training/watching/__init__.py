"""Watching: how runs stand, how far they are, and what they still need, seen from outside."""

"""Watching: how runs stand, how far they are and what they still need, for those who look from outside."""

"""Checkpoints: state trees, manifests, and what people ask about them."""

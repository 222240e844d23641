"""casckpt: the memory of a training machine."""

"""One framework a file; `import casckpt` loads none of them."""

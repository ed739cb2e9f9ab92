"""Sources: where images and their annotations come from."""

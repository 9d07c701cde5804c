"""Files into a container and out of it (hvctl cp)."""

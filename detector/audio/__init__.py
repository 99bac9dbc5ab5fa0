"""Where samples arrive."""

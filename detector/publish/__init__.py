"""Where events leave."""

"""What the daemon hears, shown to people and to machines that watch: one listener, off by default."""

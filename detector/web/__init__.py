"""What the daemon hears, shown to people and to machines that watch: one listener, off by default."""

from detector.errors import ConfigError, install


def not_installed(error: ImportError) -> ConfigError:
    """What it needs is missing."""
    return ConfigError("web.listen", f"needs a package that is not there ({error.name})", install("web"))

"""What the daemon hears, shown to people and to machines that watch: one listener, off by default."""

from detector.errors import ConfigError


def not_installed(error: ImportError) -> ConfigError:
    """What it needs is missing."""
    fix = "install them: pip install 'urbandetect[web]'"
    return ConfigError("web.listen", f"needs packages that are not there ({error.name})", fix)

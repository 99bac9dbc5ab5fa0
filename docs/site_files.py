"""Which files the site has: those of the repository that its pages link to, under their own paths. mkdocs.yml names it."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

SHOWN = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "detector.toml"),
    *("docs/*.md", "docs/*.png", "docs/*.svg", "models/*.md", "models/*.cfg", "models/*.toml"),
    *("detector/schemas/*.json", "detector/demo/ATTRIBUTION.md"),
    *("deploy/node-red/*.json", "deploy/prometheus/*.yml", "deploy/grafana/*.json"),
)
"""So README.md is the first page, and a link that holds in the repository holds on the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """In place of what lies in docs/; the theme's own files stay."""
    root = Path(config.config_file_path).parent
    of_theme = [file for file in files if file.src_dir != config.docs_dir]
    shown = [path for pattern in SHOWN for path in sorted(root.glob(pattern))]
    return Files(of_theme + [File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)) for path in shown])

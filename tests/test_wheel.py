import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("wheel")  # which is made once
PROGRAM = "from detector.cli import main; main()"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel's content, as pip would install it, far from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run(build, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo"],
        ["--help"],
        ["model", "info", "{site}/detector/models/urban.onnx"],
        ["model", "info", "{site}/detector/models/reference.cfg"],
        ["scan", "{site}/detector/demo/street.ogg"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_an_installed_wheel_carries_model_cfgs_and_demo_and_works_from_any_folder(installed, tmp_path, arguments):
    """`python -P` keeps the folder it stands in off the path: only the wheel is found."""
    command = [sys.executable, "-P", "-c", PROGRAM, *(argument.format(site=installed) for argument in arguments)]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not list(tmp_path.iterdir())


def test_an_installed_wheel_carries_the_schemas(installed):
    ours = {path.name for path in Path("detector/schemas").glob("*.json")}
    assert {path.name for path in (installed / "detector" / "schemas").glob("*.json")} == ours > {"event.json"}


def test_the_daemons_dependencies_hold_no_torch(installed):
    metadata = next(installed.glob("*.dist-info/METADATA")).read_text()
    base = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert base
    assert not any("torch" in line for line in base)

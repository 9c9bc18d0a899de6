"""Builds wheel and source archive and tries each in an empty environment.

Every module has to import there with what ``pip install`` brings and nothing else, and the demo has to train. Prints
what the installed packages take on disk.

    python -m tools.package [FOLDER]     writes the archives into FOLDER (dist)
"""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = Path(__file__).with_name("modules.py")
SHORT = ["--max-minutes", "0.2", "--eval-every", "100000", "--data.held-out-fraction", "0.001"]
SIZES = """
import importlib.metadata as metadata, pathlib
sizes = {}
for package in metadata.distributions():
    paths = [pathlib.Path(package.locate_file(file)) for file in package.files or [] if file.suffix != ".pyc"]
    sizes[package.name] = sum(path.stat().st_size for path in paths if path.is_file()) / 1e6
sizes.pop("pip", None)
print(f"{sum(sizes.values()):.0f} MB in {len(sizes)} packages:",
      ", ".join(f"{name} {size:.0f}" for size, name in sorted(((s, n) for n, s in sizes.items()), reverse=True)[:10]))
"""


def build(folder: Path) -> list[Path]:
    """Builds both archives into ``folder``, which holds no older ones afterwards."""
    for old in (*folder.glob("mom_jax-*.whl"), *folder.glob("mom_jax-*.tar.gz")):
        old.unlink()
    run(sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT))
    return sorted((*folder.glob("mom_jax-*.whl"), *folder.glob("mom_jax-*.tar.gz")))


def run(*command: str, cwd: Path | None = None) -> None:
    """Runs a command that sees nothing of this environment; ends this program where it fails."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    status = subprocess.run(command, cwd=cwd, env=env).returncode
    if status:
        sys.exit(f"tools.package: {' '.join(command[:4])} ... ended with status {status}")


def attempt(archive: Path) -> None:
    """Installs an archive into an environment of its own and uses it in an empty folder."""
    print(f"--- {archive.name} on Python {sys.version.split()[0]}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        venv.create(Path(place, "env"), with_pip=True)
        python, empty = str(Path(place, "env/bin/python")), Path(place, "empty")
        empty.mkdir()
        run(python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-compile", str(archive))
        run(python, "-c", SIZES, cwd=empty)
        run(python, str(MODULES), cwd=empty)
        run(python, "-m", "mom_jax", "demo", *SHORT, cwd=empty)


def main() -> None:
    """Builds, then tries each archive."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for archive in build(folder):
        attempt(archive)


if __name__ == "__main__":
    main()

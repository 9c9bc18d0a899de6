"""Makes a folder of programs on any machine, and runs it on a GPU where only JAX is installed.

python -m tools.hardware make FOLDER [--only WORD ...]      exports for an H100 or H200; no GPU needed
python -m tools.hardware compile FOLDER [--only WORD ...]   compiles all of it for an H100; no GPU needed
python -m tools.hardware run FOLDER --out RESULTS.json [--only WORD ...] [--minutes 7]
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch takes its share in the same process


def main() -> None:
    """Chooses by the first argument."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("verb", choices=["make", "compile", "run"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="parts of names, or of sections as in 'checks:'")
    parser.add_argument("--out", type=Path, default=Path("results.json"), help="of run: where results go")
    parser.add_argument("--minutes", type=float, default=7, help="of run: when to stop")
    arguments = parser.parse_args()
    if arguments.verb == "run":
        _run(arguments)
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.pop("TRITON_INTERPRET", None)
    from tools.install_compilers import FOLDER

    sys.path.append(str(FOLDER))
    if arguments.verb == "make":
        from tools.hardware.make import make
        from tools.hardware.programs import FULL

        make(arguments.folder, FULL, arguments.only)
    else:
        from tools.hardware.compilation import compile_all

        compile_all(arguments.folder, arguments.only)


def _run(arguments: argparse.Namespace) -> None:
    from tools.hardware.folder import read_folder
    from tools.hardware.runner import Runner
    from tools.hardware.table import page

    runner = Runner(read_folder(arguments.folder), arguments.out, arguments.minutes, tuple(arguments.only))
    print(page(runner.run()))


if __name__ == "__main__":
    main()

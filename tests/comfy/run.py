"""Runs checks inside a real ComfyUI, with its own Python: run.py COMFYUI [CHECK ...]

A check is a function `check_...` of a module `checks_....py` beside this file, called as a node is: in
inference mode. Prints one line of JSON per check, {"check": name, "error": traceback or null}. Without names
all checks run. The project's tests call this; it needs nothing that ComfyUI does not bring.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
import types
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]


def main() -> None:
    folder, *wanted = sys.argv[1:]
    # ComfyUI reads its options from the command line when it is imported.
    sys.argv = ["main.py", "--cpu"]
    sys.path[:0] = [folder, str(HERE)]
    # Last, as there is a folder of comfy's name.
    sys.path.append(str(HERE.parent))
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch

    torch.set_num_threads(1)
    # The pack under a name of its own, as ComfyUI imports it: from a folder, not from the search path.
    pack = types.ModuleType("pack")
    pack.__path__ = [str(PACK)]
    sys.modules["pack"] = pack
    import tiny

    tiny.register()
    for file in sorted(HERE.glob("checks_*.py")):
        module = importlib.import_module(file.stem)
        for name, check in list(vars(module).items()):
            if not name.startswith("check_") or check.__module__ != file.stem or (wanted and name not in wanted):
                continue
            error = None
            try:
                with torch.inference_mode():
                    check()
            except BaseException:
                error = traceback.format_exc()
            print(json.dumps({"check": name, "error": error}), flush=True)


if __name__ == "__main__":
    main()

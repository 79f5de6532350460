"""Takes the pictures of the workflows anew, in ComfyUI's own frontend; no test, but made of their helpers.

    python tests/workflow_pictures.py [NAME ...]

Those that need no model files are run first, so that their pictures show what comes of them (the first takes
minutes). Writes workflows/NAME.jpg. Needs a ComfyUI and Chromium, as the tests do.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from pathlib import Path

from browser import Browser
from comfyui import ROOT, Server
from PIL import Image

sys.path.insert(0, str(ROOT / "workflows"))
from queue_workflow import ComfyUI

FOLDER = ROOT / "workflows"
NEED_NO_FILES = ("1-text-to-3d-demo", "4-apfo-image")
SIZE = (3000, 1356)
SETTINGS = {
    "Comfy.Minimap.Visible": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # texts are drawn however small
}
MODELS = {"ckpt_name": "checkpoints", "lora_name": "loras", "control_net_name": "controlnet"}
"""Folders of the model files that inputs name."""
SETTLING = 10
"""Seconds until the 3D viewers have drawn, textures too."""


def take(page: Browser, client: ComfyUI, name: str) -> None:
    workflow = (FOLDER / f"{name}.json").read_text()
    page.run(f"app.loadGraphData({workflow}, true, true, {json.dumps(name)})")
    if name in NEED_NO_FILES:
        # Chromium draws all the while: a large page would slow the run down.
        page.ask("Emulation.setDeviceMetricsOverride", width=400, height=300, deviceScaleFactor=1, mobile=False)
        page.run("app.queuePrompt(0)")
        while any(client.get("/queue").values()):
            time.sleep(1)
        page.ask("Emulation.clearDeviceMetricsOverride")
    page.run("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    time.sleep(SETTLING)
    picture = Image.open(io.BytesIO(page.picture())).convert("RGB")
    picture.resize((SIZE[0] // 2, SIZE[1] // 2), Image.Resampling.LANCZOS).save(FOLDER / f"{name}.jpg", quality=85)


def pretend_models(base: Path) -> None:
    """Empty files of the names that the workflows ask for: ComfyUI marks what it misses."""
    for workflow in (FOLDER / "api").glob("*.json"):
        for node in json.loads(workflow.read_text()).values():
            for name in MODELS.keys() & node["inputs"].keys():
                file = base / "models" / MODELS[name] / node["inputs"][name]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()


def main() -> None:
    known = [path.stem for path in sorted(FOLDER.glob("*.json"))]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *known], metavar="NAME", help=f"of {', '.join(known)}")
    names = parser.parse_args().names or known
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "comfyui")
        server.set_frontend(**SETTINGS)
        pretend_models(server.base)
        server.start()
        client, page = ComfyUI(server.address), Browser(Path(folder) / "browser", SIZE)
        try:
            # Without API nodes ComfyUI forbids pages to fetch blobs, and its 3D viewer fetches textures so.
            page.ask("Page.setBypassCSP", enabled=True)
            page.open(f"http://{server.address}/")
            page.wait("window.app?.isGraphReady")
            for name in names:
                take(page, client, name)
        finally:
            page.close()
            server.kill()


if __name__ == "__main__":
    main()

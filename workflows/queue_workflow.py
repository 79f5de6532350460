"""Queue a workflow in API format on a ComfyUI server, follow it, and download what it saves.

    python workflows/queue_workflow.py workflows/api/1-text-to-3d-demo.json --prompt "a blue cube" --out made

Needs nothing but Python and the `websockets` package. Import `ComfyUI` to do the same from a program.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

Workflow = dict[str, dict[str, Any]]
"""Nodes by id: {"class_type": ..., "inputs": {...}, "_meta": {"title": ...}}."""

PREVIEW = 4
"""Kind of the websocket's binary messages that carry a preview picture and say of which node."""


class Failed(RuntimeError):
    """The server refused a workflow, or a node failed, or somebody interrupted it; the message says which."""


class ComfyUI:
    """One client of a ComfyUI server.

    Args:
        address: such as 127.0.0.1:8188.
    """

    def __init__(self, address: str):
        self.address, self.client = address, str(uuid.uuid4())

    def run(
        self,
        workflow: Workflow,
        on_message: Callable[[str, dict[str, Any]], None] = lambda kind, data: None,
        on_preview: Callable[[dict[str, Any], bytes], None] = lambda about, picture: None,
    ) -> dict[str, Any]:
        """Queue a workflow and wait for its end.

        Args:
            on_message: called with the type and data of every message about the run.
            on_preview: called with each preview's metadata ("node_id", "image_type") and encoded picture.

        Returns:
            What each output node shows, by its id.

        Raises:
            Failed: the workflow was refused, failed, or was interrupted, or the server went away.
        """
        outputs: dict[str, Any] = {}
        with connect(f"ws://{self.address}/ws?clientId={self.client}", max_size=None) as socket:
            socket.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
            run = self.queue(workflow)
            for kind, data in self._messages(socket, run, on_preview):
                on_message(kind, data)
                if kind == "executed":
                    outputs[data["node"]] = data["output"]
                if kind == "execution_error":
                    raise Failed(f"{data['node_type']}: {data['exception_message'].strip()}")
                if kind == "execution_interrupted":
                    raise Failed(f"{data['node_type']} was interrupted")
                if kind == "execution_success":
                    return outputs
        raise Failed("the server closed the connection before the end of the run")

    def queue(self, workflow: Workflow) -> str:
        """Put a workflow in the queue and return the id of its run.

        Raises:
            Failed: the server found an error in it.
        """
        body = json.dumps({"prompt": workflow, "client_id": self.client}).encode()
        request = urllib.request.Request(
            f"http://{self.address}/prompt", body, {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)["prompt_id"]
        except urllib.error.HTTPError as error:
            raise Failed(_refusal(json.load(error))) from error

    def get(self, path: str) -> Any:
        """The JSON at a path of the server."""
        with urllib.request.urlopen(f"http://{self.address}{path}") as answer:
            return json.load(answer)

    def interrupt(self) -> None:
        """Stop what runs now."""
        urllib.request.urlopen(f"http://{self.address}/interrupt", b"").close()

    def download(self, file: dict[str, str]) -> bytes:
        """A file that an output names by its "filename", "subfolder" and "type"."""
        query = urllib.parse.urlencode({key: file[key] for key in ("filename", "subfolder", "type")})
        with urllib.request.urlopen(f"http://{self.address}/view?{query}") as answer:
            return answer.read()

    def _messages(
        self, socket: Any, run: str, on_preview: Callable[[dict[str, Any], bytes], None]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The JSON messages about one run; its previews are handed on."""
        for message in _until_closed(socket):
            if isinstance(message, str):
                content = json.loads(message)
                if content["data"].get("prompt_id") == run:
                    yield content["type"], content["data"]
            elif struct.unpack_from(">I", message)[0] == PREVIEW:
                end = 8 + struct.unpack_from(">I", message, 4)[0]
                about = json.loads(message[8:end])
                if about.get("prompt_id") == run:
                    on_preview(about, message[end:])


def _until_closed(socket: Any) -> Iterator[str | bytes]:
    with suppress(ConnectionClosed):
        yield from socket


def _refusal(answer: dict[str, Any]) -> str:
    """The errors in a server's refusal, one a line."""
    lines = [
        f"{node['class_type']} (node {number}): {error['message']}: {error['details']}"
        for number, node in answer.get("node_errors", {}).items()
        for error in node["errors"]
    ]
    return "\n".join(lines) or answer["error"]["message"]


def saved_files(outputs: dict[str, Any]) -> list[dict[str, str]]:
    """The files that the nodes of a run put into ComfyUI's output folder."""
    shown = (entry for output in outputs.values() for entries in output.values() for entry in entries)
    return [entry for entry in shown if isinstance(entry, dict) and entry.get("type") == "output"]


def set_prompt(workflow: Workflow, text: str) -> None:
    """Put a text into the node titled "Prompt".

    Raises:
        Failed: there is no such node, or more than one.
    """
    nodes = [node for node in workflow.values() if node.get("_meta", {}).get("title") == "Prompt"]
    if len(nodes) != 1:
        raise Failed(f"the workflow has {len(nodes)} nodes titled 'Prompt'; the text needs exactly one")
    inputs = nodes[0]["inputs"]
    inputs["text" if "text" in inputs else "value"] = text


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("workflow", type=Path, help="JSON file in API format")
    parser.add_argument("--prompt", help="text for the node titled 'Prompt'")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for what the workflow saves")
    parser.add_argument("--server", default="127.0.0.1:8188", metavar="HOST:PORT")
    options = parser.parse_args()
    workflow: Workflow = json.loads(options.workflow.read_text())
    server = ComfyUI(options.server)
    try:
        if options.prompt is not None:
            set_prompt(workflow, options.prompt)
        outputs = server.run(workflow, on_message=lambda kind, data: _show(workflow, kind, data))
    except (Failed, OSError) as error:
        print(f"queue_workflow: {error}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    for file in saved_files(outputs):
        path = options.out / file["filename"]
        path.write_bytes(server.download(file))
        print(path)
    return 0


def _show(workflow: Workflow, kind: str, data: dict[str, Any]) -> None:
    """Progress on standard error: the node that runs, and how far it is."""
    if kind == "executing" and data["node"] in workflow:
        print(f"\n{workflow[data['node']]['class_type']}", end="", file=sys.stderr, flush=True)
    elif kind == "progress":
        node = workflow[data["node"]]["class_type"]
        print(f"\r{node} {data['value']}/{data['max']}", end="", file=sys.stderr, flush=True)
    elif kind == "execution_success":
        print(file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

"""Finds what the docs name and what is not there: links, anchors, pictures, commands, paths and imports.

    python tests/check_docs.py [FILE ...]

Commands are read by their own parsers and never run. They are the lines of indented blocks and of fenced ones that
name no language (or a shell's), and inline code that begins with a program of ours; there a command may be unfinished,
or an option stand alone. Prints one line for each fault.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import io
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from itertools import dropwhile, groupby, pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dreamflow_core import cli

ROOT = Path(__file__).resolve().parents[1]
DOCS = (
    "README.md",
    "docs/*.md",
    "web/docs/*.md",
    "workflows/README.md",
    "findings/README.md",
    "dreamflow_core/demo/weights/README.md",
)
FOLDERS = ("benchmarks", "docs", "dreamflow_core", "findings", "nodes", "tests", "web", "workflows")
"""A path that begins with one of these is this repository's."""
SHELLS = ("", "sh", "bash", "shell", "console")
"""Languages of fenced blocks that are commands."""
PACK = "ComfyUI/custom_nodes/dreamflow/"
"""Where the docs put this repository in a ComfyUI."""
OTHERS = ("apt-get", "bash", "cd", "git", "npm", "pip", "pytest", "sh")
"""Programs that are not ours and that blocks of commands use. Of their arguments only our paths are checked."""
COMFYUI_OPTIONS = {"--fp32-vae"}
"""Those that the docs name without the program."""

MARKDOWN = MarkdownIt("commonmark").enable("table")


def docs() -> list[Path]:
    return [file for pattern in DOCS for file in sorted(ROOT.glob(pattern))]


def faults(file: Path) -> Iterator[str]:
    """What a Markdown file names that is not there."""
    for token in MARKDOWN.parse(file.read_text()):
        if token.type == "code_block" or (token.type == "fence" and token.info in SHELLS):
            yield from _block_faults(token.content)
        elif token.type == "fence" and token.info == "python":
            yield from _snippet_faults(token.content)
        for part in token.children or [token]:
            if part.type == "code_inline":
                yield from _code_faults(part.content)
            links = [part.attrGet("href"), part.attrGet("src")]
            if part.type.startswith("html"):
                links += re.findall(r'(?:href|src)="([^"]*)"', part.content)
            for link in filter(None, links):
                yield from _link_faults(str(link), file)


def _link_faults(link: str, file: Path) -> Iterator[str]:
    address = urlsplit(link)
    if address.scheme:
        return
    target = file.parent / unquote(address.path) if address.path else file
    if not target.exists():
        yield f"{link}: there is no such file"
    elif address.fragment and address.fragment not in anchors(target):
        yield f"{link}: there is no such heading"


def anchors(file: Path) -> set[str]:
    """The names that GitHub gives a Markdown file's headings."""
    found, seen = set(), Counter[str]()
    for opening, heading in pairwise(MARKDOWN.parse(file.read_text())):
        if opening.type == "heading_open":
            text = "".join(part.content for part in heading.children or [] if part.type in ("text", "code_inline"))
            name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.add(f"{name}-{seen[name]}" if seen[name] else name)
            seen[name] += 1
    return found


def _block_faults(text: str) -> Iterator[str]:
    """Of commands in full."""
    for line in text.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line.removeprefix("$ "), comments=True)
        except ValueError as error:
            yield f"{line}: {error}"
            continue
        for between, command in groupby(words, lambda word: word in ("&&", "||", "|", ";")):
            if not between:
                # Variables may be set before the program.
                yield from _command_faults(list(dropwhile(re.compile(r"\w+=").match, command)), whole=True)


def _code_faults(text: str) -> Iterator[str]:
    """Of inline code: a command or the beginning of one, options, a path or a module; or anything else."""
    try:
        words = shlex.split(text)
    except ValueError:
        return
    if re.fullmatch(r"dreamflow_core(\.\w+)+", text):
        yield from _import_faults(*text.rsplit(".", 1))
    elif text.startswith("--"):
        yield from _option_faults(words)
    else:
        yield from _command_faults(words, whole=False)


def _command_faults(words: list[str], whole: bool) -> Iterator[str]:
    """Of one command; unless it is `whole` it may be unfinished, or none at all."""
    paths = [fault for word in words for fault in _path_faults(word)]
    if words:
        yield from paths or _program_faults(*words, whole=whole)


def _program_faults(program: str, *arguments: str, whole: bool) -> Iterator[str]:
    name = Path(program).name
    if name == "make":
        yield from _make_faults(arguments)
    elif name == "dreamflow":
        yield from _dreamflow_faults(arguments, whole)
    elif re.fullmatch(r"python[\d.]*", name):
        yield from _python_faults(arguments, whole)
    elif name.endswith(".py"):
        yield from _script_faults(ROOT / program, arguments)
    elif whole and name not in OTHERS:
        yield f"{program}: there is no such program"


def _path_faults(word: str) -> Iterator[str]:
    """Of a path into this repository; * stands for any name, as in a shell."""
    path = word.removeprefix(PACK).partition("::")[0].rstrip("/")
    ours = word.startswith(PACK) or (word.partition("/")[0] in FOLDERS and "/" in word)
    if ours and not any(ROOT.glob(path)):
        yield f"{word}: there is no such file"


def _make_faults(arguments: Sequence[str]) -> Iterator[str]:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([\w-]+):(?!=)", makefile, re.MULTILINE)
    variables = re.findall(r"^(\w+) *[?:]?=", makefile, re.MULTILINE)
    for argument in arguments:
        name, assigned, _ = argument.partition("=")
        if name not in (variables if assigned else targets):
            yield f"make {argument}: the Makefile has no {name}"


def _dreamflow_faults(arguments: Sequence[str], whole: bool) -> Iterator[str]:
    parser, said = cli._parser(), io.StringIO()
    if not whole:
        _require_nothing(parser)
    try:
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            parser.parse_args(arguments)
    except SystemExit as end:
        if end.code:
            yield said.getvalue().strip()


def _require_nothing(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        action.required = False
    for command in _commands(parser):
        _require_nothing(command)


def _commands(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    groups = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return [command for group in groups for command in group.choices.values()]


def _python_faults(arguments: Sequence[str], whole: bool) -> Iterator[str]:
    match arguments:
        case ["-m", cli.__name__, *others]:
            yield from _dreamflow_faults(others, whole)
        case ["-m", module, *others]:
            found = _find_module(module)
            if found is None:
                yield f"{module}: there is no such module"
            elif ROOT / "dreamflow_core" in found.parents:
                yield from _script_faults(found, others)
        case [script, *others]:
            yield from _script_faults(ROOT / script, others)


def _find_module(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:
        return None
    return Path(spec.origin) if spec and spec.origin else None


def _script_faults(script: Path, arguments: Sequence[str]) -> Iterator[str]:
    if not script.is_file():
        yield f"{script.name}: there is no such script"
        return
    for argument in arguments:
        option = argument.partition("=")[0]
        if option.startswith("--") and option not in _script_options(script):
            yield f"{script.name} has no option {option}"


@cache
def _script_options(script: Path) -> set[str]:
    """The options that a script adds to its parser, without importing it, which may take long."""
    calls = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call)]
    added = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"]
    return {"--help", *(word.value for call in added for word in call.args if isinstance(word, ast.Constant))}


def _option_faults(words: list[str]) -> Iterator[str]:
    """Of options without their program: one of ours has to have them all."""
    options = {word for word in words if word.startswith("--")}
    scripts = [script for folder in ("benchmarks", "workflows") for script in (ROOT / folder).glob("*.py")]
    known = [set(command._option_string_actions) for command in _commands(cli._parser())]
    if not any(options <= those for those in [*known, *map(_script_options, scripts), COMFYUI_OPTIONS]):
        yield f"{' '.join(words)}: no command and no script has that"


def _snippet_faults(source: str) -> Iterator[str]:
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except SyntaxError as error:
        yield f"{(error.text or '').strip()}: {error.msg}"
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _import_faults(alias.name)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield from _import_faults(node.module or "", alias.name)


def _import_faults(module: str, name: str | None = None) -> Iterator[str]:
    """Of `import module`, or of `from module import name`."""
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        yield str(error)
        return
    if name and not hasattr(found, name) and not _find_module(f"{module}.{name}"):
        yield f"{module} has no {name}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="Markdown; all the docs if left out")
    found = [f"{file}: {fault}" for file in parser.parse_args().files or docs() for fault in faults(file)]
    print("\n".join(found) or "everything that the docs name is there")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs a command of retinanet_tpu, or lists the commands.

retinanet-tpu COMMAND [FLAGS]              runs a command
retinanet-tpu COMMAND --help               lists its flags
python -m retinanet_tpu.COMMAND [FLAGS]    also runs a command
"""

import ast
import difflib
import pathlib
import runpy
import sys

from retinanet_tpu import exit_codes

COMMANDS = (
    "convert",
    "inspect_data",
    "fit_anchors",
    "preflight",
    "plan",
    "train",
    "evaluate",
    "analyze",
    "compare",
    "sweep",
    "import_detector",
    "export",
    "evaluate_export",
    "benchmark",
    "predict",
    "browser_page",
    "plot",
    "data_service",
)


def main() -> None:
    """Runs the command given by the first argument."""
    if len(sys.argv) < 2 or sys.argv[1] in ("help", "--help", "-h"):
        print(usage())
        return
    command = sys.argv[1].replace("-", "_")
    if command not in COMMANDS:
        print(f"error: {unknown_command(sys.argv[1])}", file=sys.stderr)
        sys.exit(exit_codes.ExitCode.USAGE)
    sys.argv[:2] = [f"{pathlib.Path(sys.argv[0]).name} {command}"]
    runpy.run_module(f"retinanet_tpu.{command}", run_name="__main__", alter_sys=True)


def usage() -> str:
    """Returns the list of commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {command:{width}}  {summary(command)}" for command in COMMANDS]
    return "\n".join([(__doc__ or "").strip(), "", "Commands:", *lines])


def summary(command: str) -> str:
    """Returns the first line of a command's docstring, without importing the command.

    Importing it would import TensorFlow, which takes seconds.
    """
    path = pathlib.Path(__file__).parent / f"{command}.py"
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return docstring.partition("\n")[0]


def unknown_command(command: str) -> str:
    """Returns the message for a command that does not exist."""
    close = difflib.get_close_matches(command.replace("-", "_"), COMMANDS, 1)
    hint = f"Did you mean {close[0]}?" if close else "See retinanet-tpu --help."
    return f"{command} is not a command; expected one of {', '.join(COMMANDS)}. {hint}"


if __name__ == "__main__":
    main()

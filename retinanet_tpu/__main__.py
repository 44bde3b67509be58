"""Runs a command of retinanet_tpu, or lists the commands.

retinanet-tpu COMMAND [FLAGS]
retinanet-tpu COMMAND --help
python -m retinanet_tpu.COMMAND [FLAGS]    the same
"""

import ast
import difflib
import pathlib
import runpy
import sys

COMMANDS = (
    "convert",
    "inspect_data",
    "fit_anchors",
    "preflight",
    "plan",
    "train",
    "evaluate",
    "export",
    "evaluate_export",
    "predict",
    "plot",
    "data_service",
)
_EXIT_USAGE = 2


def main() -> None:
    """Runs the command that the first argument names."""
    if len(sys.argv) < 2 or sys.argv[1] in ("help", "--help", "-h"):
        print(usage())
        return
    command = sys.argv[1].replace("-", "_")
    if command not in COMMANDS:
        print(f"error: {unknown(sys.argv[1])}", file=sys.stderr)
        sys.exit(_EXIT_USAGE)
    sys.argv[:2] = [f"{pathlib.Path(sys.argv[0]).name} {command}"]
    runpy.run_module(f"retinanet_tpu.{command}", run_name="__main__", alter_sys=True)


def usage() -> str:
    """Returns the list of commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {command:{width}}  {summary(command)}" for command in COMMANDS]
    return "\n".join([__doc__.strip(), "", "Commands:", *lines])


def summary(command: str) -> str:
    """Returns the first line of a command's docstring, without importing TensorFlow."""
    path = pathlib.Path(__file__).parent / f"{command}.py"
    return ast.get_docstring(ast.parse(path.read_text("utf-8"))).partition("\n")[0]


def unknown(command: str) -> str:
    """Returns the error for a command that does not exist."""
    close = difflib.get_close_matches(command.replace("-", "_"), COMMANDS, 1)
    hint = f"Did you mean {close[0]}?" if close else "See retinanet-tpu --help."
    return f"{command} is not a command; expected one of {', '.join(COMMANDS)}. {hint}"


if __name__ == "__main__":
    main()

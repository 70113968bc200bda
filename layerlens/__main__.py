"""The command line: `python -m layerlens demo`, `python -m layerlens report`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .cli import parser
from .errors import LayerLensError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 2 wrong use, 130 cancelled.

    Args:
        argv: the arguments; None takes those of the process.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = parser().parse_args(given)
    arguments.given = given
    try:
        return int(arguments.run(arguments))
    except LayerLensError as error:
        print(f"layerlens: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("layerlens: cancelled; nothing was written.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())

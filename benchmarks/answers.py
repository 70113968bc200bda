"""Which sentence of the context made this answer: every method against what the answer loses without it.

python -m benchmarks.answers measure FOLDER [PART PARTS]    (an hour of one core; can be stopped and resumed)
python -m benchmarks.answers pack FOLDER                    (keeps what the report needs in benchmarks/answers.npz)
python -m benchmarks.answers maps                           (adds the maps that benchmarks/answers.npz lacks)
python -m benchmarks.answers report > benchmarks/answers.md (a minute, without the model)
python -m benchmarks.answers check                          (a minute; explain_answer against plain torch)

The model is SmolLM2-135M-Instruct (requirements-models.txt).
"""

from __future__ import annotations

import sys
from pathlib import Path

from .answer_check import check
from .answer_data import measure
from .answer_methods import best_left_out
from .answer_pack import add_maps, pack, unpack
from .answer_report import report

PACKED = Path(__file__).with_name("answers.npz")


def main(what: str, *arguments: str) -> None:
    """Run one of the commands above."""
    if what == "measure":
        folder, part, parts = Path(arguments[0]), *map(int, arguments[1:] or ("0", "1"))
        measure(folder, None, part, parts)
        measure(folder, best_left_out, part, parts)
    elif what == "check":
        print(check([int(number) for number in arguments] or [0, 12, 33, 91]))
    elif what == "pack":
        pack(Path(arguments[0]), PACKED)
    elif what == "maps":
        add_maps(PACKED)
    else:
        print(report(unpack(PACKED)))


if __name__ == "__main__":
    main(*sys.argv[1:])

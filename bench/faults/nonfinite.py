"""A NaN or an infinity at every layer in turn, forward and backward, in three types: the first layer must be named."""

import os
import pathlib
import sys
import tempfile

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

from bench.faults.row import Row, print_rows
from scripts.testbed.nonfinite import cases, poisoned_backward, poisoned_forward

DTYPES = {
    "float32": "float32",
    "mixed_float16": "float16 with loss scale",
    "mixed_bfloat16": "bfloat16",
}


def count_named(dtype: str, ats: range) -> Row:
    """Count the cases of a type that name the layer, in the record and as a finding, and that are on disk."""
    total = 0
    by_record = 0
    by_finding = 0
    on_disk = 0
    for poison, direction in ((poisoned_forward, "forward"), (poisoned_backward, "backward")):
        for wrong in (float("nan"), float("inf")):
            with tempfile.TemporaryDirectory() as scratch:
                for case in cases(dtype, poison, pathlib.Path(scratch), ats, wrong):
                    total += 1
                    on_disk += case.run.steps.tolist() == list(range(case.at + 1))
                    by_record += case.run[f"first_nonfinite_{direction}"].tolist() == case.expected
                    by_finding += case.findings[:1] == [(case.layer, case.at)]
    result = (
        f"first layer named at the exact step in {by_record} of {total} records and {by_finding} findings; "
        f"last good and first bad record on disk in {on_disk}"
    )
    test = f"NaN or infinity at each of 5 layers, forward and backward, {DTYPES[dtype]}"
    return Row(test, result, by_record == by_finding == on_disk == total)


def main() -> None:
    """Print the rows of the table."""
    ats = range(1, 3 if "--quick" in sys.argv else 6)
    print_rows([count_named(dtype, ats) for dtype in DTYPES])


if __name__ == "__main__":
    main()

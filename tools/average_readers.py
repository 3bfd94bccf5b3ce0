"""The mean of several readers, tensor by tensor: as one reader.

    python tools/average_readers.py FILE FILE ... --out FILE

Readers that were trained one from the other lie near enough together for their mean to read as each of them does at its
best; what each has forgotten of the others is less. (Wortsman et al., "Model soups", 2022.)
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from megart.adapter import read_adapter, write_adapter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("readers", type=Path, nargs="+", help="of one base and one rank")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    readers = [read_adapter(path).as_type("f32") for path in args.readers]
    first = readers[0]
    if any(reader.metadata != first.metadata or reader.rank != first.rank for reader in readers):
        parser.error("got readers of different bases or ranks; expected readers trained one from the other")
    means = {
        name: tuple(np.mean([reader.tensors[name][side] for reader in readers], 0) for side in (0, 1))
        for name in first.tensors
    }
    args.out.write_bytes(write_adapter(replace(first, tensors=means).as_type("q8_0")))


if __name__ == "__main__":
    main()

"""No shards: the pictures lie in memory in their order, and are decoded."""

import sys
from collections.abc import Iterable
from pathlib import Path

from pictures import entries, main, pixels, text
from torch.utils.data import DataLoader, Dataset


class _Pixels(Dataset[int]):
    def __init__(self, pictures: Path, count: int) -> None:
        self.entries = [(image, text(said)) for image, said in entries(pictures, count)]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, number: int) -> int:
        return pixels(*self.entries[number])


def _read(folder: Path, workers: int) -> Iterable[int]:
    return DataLoader(_Pixels(folder, COUNT), batch_size=None, num_workers=workers)


COUNT = int(sys.argv[4])
main(None, _read)

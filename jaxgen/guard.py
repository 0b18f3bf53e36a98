"""Watches for steps that were left out, having no finite loss and gradient."""

from jaxgen.train import Progress


class Guard:
    """Counts steps in a row that were left out, one network or another having no finite loss and gradient."""

    def __init__(self, most: int):
        self.most, self.count, self.first, self.what = most, 0, 0, ""

    @property
    def full(self) -> bool:
        return self.count >= self.most

    def progress(self, progress: Progress) -> None:
        skipped = {name: value for name, value in progress.metrics.items() if name.endswith(" skipped")}
        for i in range(progress.stop - progress.start):
            if self.full or not any(value[i] > 0 for value in skipped.values()):
                self.count = self.count if self.full else 0
                continue
            if self.count == 0:
                self.first = progress.start + i
                numbers = (f"{n} {v[i]:.4g}" for n, v in progress.metrics.items() if "loss" in n or "norm" in n)
                self.what = f"at step {self.first} {', '.join(numbers)}"
            self.count += 1

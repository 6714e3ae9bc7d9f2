"""genray's batched augmentation against torchvision's for single images, on one CPU thread.

    python benchmarks/augment.py

Both run the same policy from uint8 to normalised float32, in turn. The table shows medians of CPU time, which for one
thread is the time on an idle core. The last line is the table as JSON.
"""

import json
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from torchvision.transforms import v2

from genray.config.sections import Augment
from genray.views.augment import MEAN, STD, Policy, augment_views, policy

ROUNDS = 9
"""Measurements of each, after a warm-up."""


def torchvision_transform(policy: Policy) -> v2.Compose:
    """The policy as torchvision's transforms; they crop uint8, which is faster than cropping floats."""
    colour = v2.ColorJitter(*policy.jitter)
    blur = v2.GaussianBlur(2 * max(1, policy.size // 20) + 1, policy.blur_sigma)
    return v2.Compose(
        [
            v2.RandomResizedCrop(policy.size, policy.scale, policy.ratio, antialias=True),
            v2.RandomHorizontalFlip(policy.flip),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomApply([colour], policy.jitter_probability),
            v2.RandomGrayscale(policy.grey),
            *([v2.RandomApply([blur], policy.blur)] if policy.blur else []),
            v2.Normalize(MEAN, STD),
        ]
    )


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(name: str, images: int, size: int) -> dict[str, float | str | int]:
    """Milliseconds per image of both."""
    chosen = policy(Augment(policy=name), size)  # type: ignore[arg-type]
    views = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (images, 1, 3, size, size), dtype=np.uint8))
    anchors, transform = np.arange(images), torchvision_transform(chosen)
    ours, theirs = [], []
    for use in range(ROUNDS + 1):  # the first is a warm-up
        ours.append(seconds(lambda use=use: augment_views(views, anchors, chosen, 0, 1, use)))  # type: ignore[misc]
        theirs.append(seconds(lambda: torch.stack([transform(image) for image in views[:, 0]])))
    ours_ms, theirs_ms = (1000 * median(times[1:]) / images for times in (ours, theirs))
    return {"policy": name, "images": images, "size": size, "ours_ms": ours_ms, "torchvision_ms": theirs_ms}


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'policy':8}{'images':>8}{'pixels':>8}{'ours':>12}{'torchvision':>14}{'ratio':>8}")
    rows = [compare(*case) for case in (("genrep", 64, 128), ("simclr", 64, 128), ("digits", 256, 32))]
    for row in rows:
        row["ratio"] = row["torchvision_ms"] / row["ours_ms"]  # type: ignore[operator]
        ours, theirs = f"{row['ours_ms']:.3f} ms", f"{row['torchvision_ms']:.3f} ms"
        print(f"{row['policy']:8}{row['images']:8}{row['size']:8}{ours:>12}{theirs:>14}{row['ratio']:8.2f}")
    print(json.dumps({"torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()

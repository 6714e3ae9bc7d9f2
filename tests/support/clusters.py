"""Features for tests: points about ten random directions."""

import torch


def clusters(n: int, width: int = 16, spread: float = 0.3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features `[n, width]`, the further from their class's direction the larger `spread` is, and classes `[n]`."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(10, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(10, (n,), generator=random)
    return centres[labels] + spread * torch.randn(n, width, generator=random), labels

"""What the tokenizer tests share."""

import pytest
import torch


@pytest.fixture
def images():
    """Four images (4, 3, 32, 48) in [0, 1]: smooth waves of many colours, directions and wavelengths."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing='ij')
    angles, lengths, shifts = torch.rand(3, 4, 3, 1, 1)
    waves = (y * (6 * angles).sin() + x * (6 * angles).cos()) / (2 + 6 * lengths) + 6 * shifts
    return 0.5 + 0.5 * waves.sin()

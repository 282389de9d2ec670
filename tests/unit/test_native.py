"""The library of modernbert/csrc: attention and whole layers in int8, whose oracle is the way of torch; and doing without it.

It is built for these tests where it was not installed.
"""

from __future__ import annotations

import ctypes
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import make_hot, relative_error
from test_attention import plain

from modernbert import cpu, int8_native, native
from modernbert.attention import varlen_attention
from modernbert.config import ModernBertConfig
from modernbert.int8 import quantise
from modernbert.linear import prepack
from modernbert.model import ModernBertModel
from modernbert.packing import PackedBatch
from modernbert.torch_attention import FUSED, NATIVE

SOURCES = Path(native.__file__).parent / "csrc"
LENGTHS = (1, 2, 9, 9, 24, 25, 65, 66, 130, 209, 251, 300, 1000)
SHAPE = {"hidden_size": 128, "intermediate_size": 176, "num_attention_heads": 4}
LAYERS = {"num_hidden_layers": 4, "vocab_size": 300, "pad_token_id": 0, "local_attention": 16}
BIASES = {"attention_bias": True, "mlp_bias": True, "norm_bias": True}


def use(monkeypatch, functions) -> None:
    """Let `functions` stand in for what is loaded, or None for nothing."""
    monkeypatch.setattr(native, "_load", lambda: functions)
    native.library.cache_clear()
    native.why_missing.cache_clear()
    cpu.fastest_way.cache_clear()


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if not torch.cpu._is_vnni_supported():
        pytest.skip("the processor has no AVX512_VNNI")
    compiler = shutil.which("cc")
    with pytest.MonkeyPatch.context() as monkeypatch:
        if native.library() is None:
            if compiler is None:
                pytest.skip("there is no C compiler")
            built = tmp_path_factory.mktemp("native") / "native.so"
            flags = ["-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
            sources = sorted(SOURCES.glob("*.c"))
            subprocess.run([compiler, *flags, *sources, "-o", built, "-lm"], check=True)
            use(monkeypatch, ctypes.CDLL(str(built)))
        yield native.library()
    native.library.cache_clear()
    native.why_missing.cache_clear()
    cpu.fastest_way.cache_clear()


@pytest.mark.parametrize("window", [None, (64, 64), (16, 16), (8, 3), (0, 0)], ids=str)
@pytest.mark.parametrize(("heads", "head_dim"), [(2, 64), (3, 32), (1, 96)])
@torch.inference_mode()
def test_attention_is_the_plain_formula_and_no_sequence_depends_on_another(
    library, window, heads, head_dim
):
    torch.manual_seed(0)
    q, k, v = (torch.randn(sum(LENGTHS), 3, heads, head_dim) * 2).unbind(1)
    starts = torch.tensor((0, *LENGTHS)).cumsum(0).int()
    got = varlen_attention(q, k, v, starts, LENGTHS, window, way=NATIVE)
    want = plain(q, k, v, LENGTHS, window)
    assert relative_error(got.double(), want) < 2e-6  # sums of up to 1000 terms in fp32
    for start, length in zip(starts, LENGTHS, strict=False):
        rows = slice(int(start), int(start) + length)
        only = torch.tensor([0, length], dtype=torch.int32)
        alone = [x[rows].contiguous() for x in (q, k, v)]
        assert torch.equal(varlen_attention(*alone, only, (length,), window, way=NATIVE), got[rows])


@torch.inference_mode()
def test_what_is_no_number_stays_in_its_sequence_and_is_seen_there(library):
    lengths = (40, 70)
    q, k, v = torch.randn(3, sum(lengths), 2, 32)
    want = native.attention(q, k, v, lengths, None)
    for tensor, wrong in ((q, torch.nan), (k, torch.nan), (v, torch.inf)):
        kept = tensor[20].clone()
        tensor[20] = wrong
        got = native.attention(q, k, v, lengths, None)
        assert not got[20].isfinite().any()
        assert torch.equal(got[40:], want[40:])
        tensor[20] = kept


def new_model(config: dict) -> ModernBertModel:
    torch.manual_seed(0)
    model = ModernBertModel(ModernBertConfig(**SHAPE | LAYERS | config)).eval()
    make_hot(model, 1.0)
    return model


def int8_model(monkeypatch, config: dict, functions) -> ModernBertModel:
    """The same weights each time, by the library or by torch."""
    model = new_model(config)
    use(monkeypatch, functions)
    quantise(model)
    prepack(model)
    return model


def batch_of(ids: torch.Tensor, *lengths: int) -> PackedBatch:
    return PackedBatch.from_lengths(ids, lengths)


@pytest.fixture
def without_amx(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


@pytest.mark.parametrize("config", [{}, BIASES], ids=["as published", "all biases"])
@torch.inference_mode()
def test_layers_in_int8_are_those_of_torch_and_no_answer_depends_on_its_neighbours(
    library, monkeypatch, without_amx, config
):
    lengths = (1, 5, 40, 90, 300)
    ids = torch.randint(3, 300, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    want = int8_model(monkeypatch, config, None).forward_packed(batch_of(ids, *lengths))
    model = int8_model(monkeypatch, config, library)
    assert all(isinstance(layer.native, int8_native.NativeLayer) for layer in model.layers)
    got = model.forward_packed(batch_of(ids, *lengths))
    # A value near the middle of two steps may be rounded to either, and later layers amplify that;
    # all that int8 loses is more.
    exact = new_model(config).forward_packed(batch_of(ids, *lengths))
    assert relative_error(got, want) < 0.7 * relative_error(want, exact)
    assert relative_error(got, exact) < 1.2 * relative_error(want, exact)
    for one, part in zip(ids.split(lengths), got.split(lengths), strict=True):
        assert torch.equal(model.forward_packed(batch_of(one, len(one))), part)

    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(model.forward_packed(batch_of(ids, *lengths)), got)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, 1e30])
@torch.inference_mode()
def test_a_row_that_is_no_number_is_no_answer(library, monkeypatch, without_amx, wrong):
    """Rounded to int8 it would be one, a wrong one. A huge number is one."""
    layer = int8_model(monkeypatch, {}, library).layers[1].native
    x, attended = torch.randn(2, 40, 128)
    want = layer.project_output(x, attended)
    attended[7, 3] = wrong
    got = layer.project_output(x, attended)
    assert got[7].isfinite().all() == (wrong == 1e30)
    for row in (slice(0, 7), slice(8, 40)):
        assert torch.equal(got[row], want[row])


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"hidden_activation": "silu"}, "no activation but GELU"),
        ({"intermediate_size": 168}, "these are 128, 168 and 32"),
    ],
)
@torch.inference_mode()
def test_a_model_that_the_library_does_not_compute_is_computed_by_torch_with_a_word(
    library, monkeypatch, without_amx, caplog, config, reason
):
    model = int8_model(monkeypatch, config, library)
    assert all(layer.native is None for layer in model.layers)
    assert reason in caplog.text
    assert model.forward_packed(batch_of(torch.arange(3, 9), 6)).isfinite().all()


@torch.inference_mode()
def test_without_the_library_torch_computes_and_a_word_says_so(monkeypatch, caplog, without_amx):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    caplog.set_level(logging.WARNING)
    int8_model(monkeypatch, {}, None)
    assert "it was not built: install the package where there is a C compiler" in caplog.text
    assert "native" not in cpu.processor.__wrapped__()
    assert cpu.fastest_way.__wrapped__(4, 32, (8, 8), torch.float32) == FUSED
    native.library.cache_clear()
    native.why_missing.cache_clear()
    cpu.fastest_way.cache_clear()


def test_a_library_of_other_sources_is_not_used(library, monkeypatch):
    monkeypatch.setattr(native, "_INTERFACE_VERSION", 0)
    use(monkeypatch, native._load())
    assert native.library() is None
    assert native.why_missing() == "it was built from other sources: install the package again"
    native.library.cache_clear()
    native.why_missing.cache_clear()
    cpu.fastest_way.cache_clear()


@pytest.mark.parametrize(("name", "way"), [("Intel(R) Xeon(R)", NATIVE), ("AMD EPYC", FUSED)])
def test_in_float32_the_processor_decides_and_no_clock(library, monkeypatch, name, way):
    """Two processes of a machine compute alike, however busy it is."""
    monkeypatch.setattr(cpu, "_seconds", lambda *_: pytest.fail("attention is timed"))
    monkeypatch.setattr(cpu, "processor", lambda: name)
    assert cpu.fastest_way.__wrapped__(4, 64, (64, 64), torch.float32) == way
    assert cpu.fastest_way.__wrapped__(4, 24, (64, 64), torch.float32) == FUSED


def test_the_package_installs_without_a_compiler(tmp_path):
    """The library is optional: a failing compiler is no error."""
    root = SOURCES.parents[1]
    shutil.copytree(SOURCES, tmp_path / "modernbert" / "csrc")
    shutil.copy(root / "pyproject.toml", tmp_path)
    for name in ("README.md", "LICENSE"):
        shutil.copy(root / name, tmp_path)
    build = "from setuptools import setup; setup()"
    command = [sys.executable, "-c", build, "build_ext", "--inplace"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"CC": "/bin/false", "PATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*.so"))

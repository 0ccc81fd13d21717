"""What is said of a quantizer that breaks its contract, or makes a loss NaN, in a sweep."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest
from small_sweep import ONE, one_line, settings, sweep, write_small

from qresearch.cli import main
from qresearch.quantizers import QUANTIZERS, QuantSpec
from qresearch.quantizers.lsq import lsq


def nan_in(part):
    """A method whose qparams ("init") or results ("apply") are NaN where it quantizes."""

    def factory(spec):
        own = lsq(spec)

        def init(x, bits):
            return jax.tree.map(lambda leaf: leaf * jnp.nan, own.init(x, bits))

        def apply(qparams, x, bits, *, key=None):
            return jnp.where(bits < 32, jnp.nan, x)

        return own._replace(init=init) if part == "init" else own._replace(apply=apply)

    return factory


OWN = "the quantized model's own loss, not the learning rate"
QPARAMS = r"qparams that are not finite give it: quantizer 'bad' at linear1/input, 'bad' at linear2/input, .* .*"
METHODS = "a quantizer or a post-training method gives it: lsq, bad"


@pytest.mark.parametrize(
    ("part", "values", "reason"),
    [
        ("init", ["flow=ptq"], f"the test loss .* 400 examples; the float model's loss is finite, so {QPARAMS}"),
        ("apply", ["flow=ptq"], f"the test loss .* 400 examples; the float model's loss is finite, so {METHODS}"),
        ("apply", ["flow=ptq", "ptq=[bias_correction]"], f"the test loss .* is finite, so {METHODS}, bias_correction"),
        ("apply", ["flow=qat", "qat.epochs=0"], f"the test loss .* is finite, so {METHODS}"),
        ("init", ["flow=qat"], rf"the loss became nan at step 1 \(epoch 1\), before any update: {OWN}; {QPARAMS}"),
    ],
)
def test_a_loss_that_quantization_makes_nan_is_put_on_quantization(tmp_path, monkeypatch, capsys, part, values, reason):
    monkeypatch.setitem(QUANTIZERS, "bad", nan_in(part))
    own = ("quantize.input={quantizer: bad, range: own}", *ONE, *values)
    assert sweep(write_small(tmp_path), tmp_path / "out", *own) == 3
    line = one_line(capsys.readouterr().err)
    assert re.fullmatch(rf"failed  (ptq|qat)-lsq\+bad-\S+: {reason}", line), line


@pytest.mark.parametrize("command", ["sweep", "check"])
def test_a_quantizer_that_breaks_its_contract_is_refused_before_anything_starts(tmp_path, monkeypatch, capsys, command):
    broken = lsq(QuantSpec())._replace(apply=lambda qparams, x, bits, *, key=None: x[..., None])
    monkeypatch.setitem(QUANTIZERS, "bad", lambda spec: broken)
    values = settings(f"output={tmp_path / 'out'}", "quantize.input={quantizer: bad, range: own}", *ONE)
    assert main([command, str(write_small(tmp_path)), *values]) == 2
    expected = "quantizer 'bad' at linear1/input: apply returned float32[1,64,1], expected x's float32[1,64]"
    assert one_line(capsys.readouterr().err) == f"error: {expected}"
    assert not (tmp_path / "out").exists()

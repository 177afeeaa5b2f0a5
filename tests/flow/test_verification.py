"""Verification of one build: every tensor, and what is left where the engines do not agree."""

import json

import pytest

from espalier.engines.rtl import RtlEngine
from espalier.errors import DataError, MismatchError
from espalier.flow import SimulateRequest, VerifyRequest, simulate, verify
from espalier.flow.verification import BUNDLE
from espalier.report.model import Verification
from espalier.report.serial import decode

TRACED = RtlEngine.traced_step


def test_verification_counts_every_tensor(build):
    record = verify(build, VerifyRequest(steps=2))
    assert record.passed and record.steps == 2
    names = [tensor.name for tensor in record.tensors]
    assert {"loss", "fc.grad", "conv.weight.grad", "conv.weight.master", "fc.bias.momentum"} <= set(names)
    assert decode(Verification, json.loads((build / "verify.json").read_text()), "verify") == record


def test_a_mismatch_is_located_and_bundled_wrong(build, wrong_engine):
    with pytest.raises(MismatchError, match=r"the first is fc\[0, 3\] is .* by the reference and .* by the candidate "
                                            r"\(rerun it with: python -m espalier\.engines\.verify "):
        verify(build, VerifyRequest())
    record = decode(Verification, json.loads((build / "verify.json").read_text()), "verify")
    assert not record.passed and record.differing == 2
    assert (build / BUNDLE / "tensors.safetensors").is_file()


def test_steps_wrong():
    with pytest.raises(DataError, match=r"^Steps must be at least 1 and the seed at least 0, not 0 and 0$"):
        VerifyRequest(steps=0)


@pytest.mark.parametrize("agree", [
    lambda build: verify(build, VerifyRequest()),
    lambda build: simulate(build, SimulateRequest(steps=1, dense=False, test_images=0)),
], ids=["verify", "simulate"])
def test_what_a_mismatch_left_goes_when_the_engines_agree(build, monkeypatch, agree):
    with monkeypatch.context() as patch:
        patch.setattr(RtlEngine, "traced_step", lambda self, images, labels: {
            **(found := TRACED(self, images, labels)), "loss": found["loss"] + 1})
        with pytest.raises(MismatchError):
            agree(build)
    assert (build / BUNDLE).is_dir()
    agree(build)
    assert not (build / BUNDLE).exists() and not [path for path in build.iterdir() if path.name.startswith(".")]


def test_a_bundle_is_replaced_as_a_whole(build, wrong_engine):
    for _ in range(2):
        with pytest.raises(MismatchError):
            verify(build, VerifyRequest())
        assert not (build / BUNDLE / "of-the-first-run").exists()
        (build / BUNDLE / "of-the-first-run").write_text("")


@pytest.mark.parametrize("command", [lambda build: verify(build, VerifyRequest()),
                                     lambda build: simulate(build, SimulateRequest())], ids=["verify", "simulate"])
def test_a_folder_in_the_place_of_the_bundle_wrong(build, command):
    (build / BUNDLE).mkdir()
    (build / BUNDLE / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match=r"^The output directory 'mismatch' holds something that was not made here "):
        command(build)
    assert (build / BUNDLE / "letter.txt").read_text() == "dear"

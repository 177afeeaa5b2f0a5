"""The demonstration of `make demo` runs as it stands, with one epoch in simulation."""

import runpy
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo.py"


def test_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo.py", "--output-dir", str(tmp_path), "--epochs-in-simulation", "1"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(DEMO), run_name="__main__")
    assert stop.value.code == 0
    assert capsys.readouterr().out.endswith(f"Report: {tmp_path / 'report.html'}\n")
    page = (tmp_path / "report.html").read_text()
    assert "0 differ" in page and "MULT18X18D" in page

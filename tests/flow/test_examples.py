"""The examples run as they stand."""

import runpy
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_own_network(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["own_network.py", "--output-dir", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "own_network.py"), run_name="__main__")
    assert capsys.readouterr().out.endswith(" tensors compared, 0 differ\n")
    assert (tmp_path / "build" / "verify.json").is_file()

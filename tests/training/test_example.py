"""The Python example of the page, run on a tiny encoder and made-up speech."""

from __future__ import annotations

import re

from conftest import REPOSITORY
from transformers import AutoModel


def page_example() -> str:
    text = (REPOSITORY / "docs" / "training_in_python.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return code


def test_the_example_trains_and_exports(tiny_encoder, small_tree, tmp_path):
    code = page_example()
    assert len([line for line in code.splitlines() if line]) <= 20
    for shown, here in (
        ('"facebook/hubert-base-ls960"', repr(str(tiny_encoder))),
        ('"LibriSpeech", "train-clean-100"', f"{str(small_tree)!r}, 'train'"),
        ('"LibriSpeech", "dev-clean"', repr(str(small_tree))),
        ('"outputs/laser"', repr(str(tmp_path))),
        ("max_steps=3600", "max_steps=2, use_cpu=True, report_to='none', dataloader_num_workers=0, eval_steps=2"),
    ):
        assert shown in code
        code = code.replace(shown, here)
    names: dict = {}
    exec(code, names)
    log = names["trainer"].state.log_history
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [2]
    assert AutoModel.from_pretrained(tmp_path).config.hidden_size == 32

"""CTC losses, targets and greedy decoding, on hand cases and against torch's own loss."""

from __future__ import annotations

import pytest
import torch

from laser_hf.superb.recognition import phones, text
from laser_hf.superb.recognition.corpus import UnusableText
from laser_hf.superb.recognition.ctc import collapse, ctc_losses, merge_without_blanks
from laser_hf.superb.recognition.ctc_tasks import AsrTask, Decoded, PrTask
from laser_hf.superb.recognition.lexicon import Lexicon


def test_vocabulary_is_superbs():
    assert len(text.VOCABULARY) == 32
    assert text.VOCABULARY[:5] == ("<s>", "<pad>", "</s>", "<unk>", "|")
    assert "".join(text.VOCABULARY[5:]) == "ETAONIHSRDLUMCWFGYPBVK'XJQZ"
    assert text.BLANK == 0


def test_character_targets():
    e, t, a = (text.VOCABULARY.index(letter) for letter in "ETA")
    bar, end, unknown = 4, 2, 3
    assert text.encode("tea at") == [t, e, a, bar, a, t, bar, end]
    assert text.encode("  TEA\t") == [t, e, a, bar, end]
    assert text.encode("T3") == [t, unknown, bar, end]
    with pytest.raises(ValueError, match="no words"):
        text.encode(" \n")


def test_phones_are_superbs():
    assert len(phones.PHONES) == 71
    assert len(phones.VOCABULARY) == 74
    assert phones.VOCABULARY[:6] == ("<pad>", "<eos>", "<unk>", "SIL", "SPN", "AA0")
    assert sum(phone[-1] in "012" for phone in phones.PHONES) == 45
    assert phones.VOCABULARY[-1] == "ZH"
    assert phones.VOCABULARY.index("B") == 23  # in the alphabetical list, after AY2


def test_phone_targets():
    k, t = phones.VOCABULARY.index("K"), phones.VOCABULARY.index("T")
    assert phones.encode(["K", "T"]) == [k, t, 1]
    with pytest.raises(ValueError, match="unknown phones XX"):
        phones.encode(["K", "XX"])


def test_greedy_paths_of_characters():
    ids = {symbol: index for index, symbol in enumerate(text.VOCABULARY)}
    path = [ids[s] for s in ("<s>", "T", "T", "O", "<s>", "O", "|", "|", "<s>", "A", "|", "</s>", "</s>")]
    assert collapse(path) == [ids[s] for s in ("T", "O", "O", "|", "A", "|", "</s>")]
    units = AsrTask.decode(path)
    assert units == ["T", "O", "O", "|", "A", "|"]
    assert AsrTask.written(units) == "TOO A"
    assert AsrTask.decode([0, 0]) == []
    assert AsrTask.written(["|", "|", "A", "|", "|", "B"]) == "A B"


def test_greedy_paths_of_phones_merge_across_blanks():
    k, t = phones.VOCABULARY.index("K"), phones.VOCABULARY.index("T")
    path = [0, k, k, 0, k, t, 1, 1, 0, t, 0]
    assert merge_without_blanks(path, (0, 1)) == [k, t]
    assert collapse(path) == [k, k, t, 1, t]
    assert PrTask.decode(path) == ["K", "T"]


def test_a_target_is_what_decoding_its_own_path_gives():
    target = text.encode("all too well")
    path = [frame for label in target for frame in (label, label, 0)]
    assert AsrTask.decode(path) == AsrTask.reference(target)


def test_losses_are_torchs():
    torch.manual_seed(0)
    log_probs = torch.randn(3, 12, 6, dtype=torch.float64).log_softmax(-1).requires_grad_()
    frames, lengths = torch.tensor([12, 9, 4]), torch.tensor([4, 3, 5])
    targets = torch.randint(1, 6, (3, 5))
    targets[2] = 3  # five equal labels need nine frames: does not fit into four
    losses = ctc_losses(log_probs, frames, targets, lengths)
    expected = torch.nn.CTCLoss(blank=0, zero_infinity=True)(
        log_probs.float().transpose(0, 1), targets, frames, lengths
    )
    assert losses[2] == 0
    torch.testing.assert_close(losses.mean(), expected)
    gradient = torch.autograd.grad(losses.sum(), log_probs)[0]
    assert gradient.isfinite().all()
    assert (gradient[1, 9:] == 0).all()


def test_loss_by_summing_all_paths():
    torch.manual_seed(1)
    log_probs = torch.randn(1, 4, 3).log_softmax(-1)
    target = [1, 2]
    total = torch.tensor(0.0)
    for path in torch.cartesian_prod(*[torch.arange(3)] * 4).tolist():
        if collapse(path) == target:
            total = total + sum(log_probs[0, t, label] for t, label in enumerate(path)).exp()
    loss = ctc_losses(log_probs, torch.tensor([4]), torch.tensor([target]), torch.tensor([2]))
    torch.testing.assert_close(loss, -total.log()[None] / 2)


def edit_distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def random_edits(generator, sequence, alphabet):
    edited = []
    for item in sequence:
        draw = float(torch.rand((), generator=generator))
        if draw < 0.15:
            continue
        edited.append(alphabet[int(torch.randint(len(alphabet), (), generator=generator))] if draw < 0.3 else item)
        if draw > 0.9:
            edited.append(alphabet[0])
    return edited


def test_error_rates_on_random_edits():
    generator = torch.Generator().manual_seed(0)
    decoded, words, units = [], [0, 0], [0, 0]
    for number in range(30):
        lengths = torch.randint(1, 6, (7,), generator=generator).tolist()
        letters = [["ABCDE"[i] for i in torch.randint(5, (n,), generator=generator).tolist()] + ["|"] for n in lengths]
        reference = [unit for word in letters for unit in word]
        hypothesis = random_edits(generator, reference, "ABC|")
        decoded.append(Decoded(str(number), hypothesis, reference))
        ref_words, hyp_words = text.words(reference).split(), text.words(hypothesis).split()
        words = [words[0] + edit_distance(hyp_words, ref_words), words[1] + len(ref_words)]
        units = [units[0] + edit_distance(hypothesis, reference), units[1] + len(reference)]
    metrics = AsrTask().metrics(decoded)
    assert metrics["wer"] == pytest.approx(100 * words[0] / words[1])
    assert metrics["uer"] == pytest.approx(100 * units[0] / units[1])
    assert 0 < metrics["cer"] < metrics["wer"]


def test_phone_error_rate_with_an_empty_hypothesis():
    task = PrTask(Lexicon({}, {}))
    decoded = [Decoded("a", [], ["K", "AE1", "T"]), Decoded("b", ["K", "T"], ["K", "AE1", "T"])]
    # S3PRL: "".split(" ") is [""]: one substitution and two deletions.
    errors = edit_distance([""], ["K", "AE1", "T"]) + 1
    assert task.metrics(decoded)["per"] == pytest.approx(100 * errors / 6)


def test_unknown_words_are_named():
    task = PrTask(Lexicon({"CAT": ["K", "AE1", "T"]}, {}))
    assert PrTask.reference(task.encode("cat Cat")) == ["K", "AE1", "T"] * 2
    with pytest.raises(UnusableText, match="unknown_word: no pronunciation of DOG, EEL") as error:
        task.encode("cat dog eel dog")
    assert error.value.words == ["DOG", "EEL"]
    with pytest.raises(ValueError, match="'skip' or 'error'"):
        PrTask(Lexicon({}, {}), "guess")

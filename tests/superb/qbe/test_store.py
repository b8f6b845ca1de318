"""Frames on disk: what is read, batched, normalised, and taken up again."""

import numpy as np
import pytest
import soundfile
import torch

from laser_hf.data.decode import BadAudio
from laser_hf.encoders import load_encoder
from laser_hf.superb.qbe import store as stores
from laser_hf.superb.qbe.data import Utterance
from laser_hf.superb.qbe.frontends import EncoderFrontend, SpectralFrontend, choose_layers, load_frontend


def write(path, seconds, seed=0, rate=16_000, channels=1):
    shape = (int(seconds * rate), channels) if channels > 1 else int(seconds * rate)
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.1, shape), rate, subtype="FLOAT")
    return Utterance(path.stem, path)


@pytest.fixture
def utterances(tmp_path):
    return [write(tmp_path / f"{n}.wav", 0.2 + 0.13 * ((5 * n) % 7), n) for n in range(7)]


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return load_encoder(str(tiny_encoder))


def test_parts_gain_and_rates(tmp_path):
    whole = write(tmp_path / "a.wav", 1.0)
    samples = stores.read_waveform(whole)
    part = stores.read_waveform(Utterance("q", whole.audio, 0.25, 0.5), gain=0.5)
    torch.testing.assert_close(part, samples[4000:12000] * 0.5)
    assert len(stores.read_waveform(write(tmp_path / "b.wav", 1.0, rate=8000))) == 16_000
    assert stores.read_waveform(write(tmp_path / "c.wav", 1.0, channels=2)).shape == (16_000,)


def test_a_file_of_one_frame_is_read(tmp_path):
    assert len(stores.read_waveform(write(tmp_path / "a.wav", 400 / 16_000), shortest=400)) == 400
    with pytest.raises(BadAudio, match="399 samples; one frame needs 400"):
        stores.read_waveform(write(tmp_path / "b.wav", 399.5 / 16_000), shortest=400)


@pytest.mark.parametrize(
    ("name", "times", "kind"),
    [
        ("none.wav", (), "undecodable"),
        ("none.wav", (0.1, 0.2), "undecodable"),
        ("text.wav", (), "undecodable"),
        ("text.wav", (0.1, 0.2), "undecodable"),
        ("zero.wav", (), "empty"),
        ("silent.wav", (), "silent"),
        ("good.wav", (7.0, 0.2), "empty"),
        ("good.wav", (0.1, 0.0), "empty"),
        ("good.wav", (0.1, 0.01), "too_short"),
    ],
)
def test_unusable_audio_has_a_kind(tmp_path, name, times, kind):
    write(tmp_path / "good.wav", 0.5)
    (tmp_path / "text.wav").write_text("no audio at all")
    soundfile.write(tmp_path / "zero.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(9000), 16_000)
    with pytest.raises(BadAudio) as error:
        stores.read_waveform(Utterance("u", tmp_path / name, *times), shortest=400)
    assert error.value.kind == kind


def test_batches_hold_everything_once_longest_first():
    counts = np.random.default_rng(0).integers(0, 20 * 16_000, size=50).tolist()
    batches = stores.plan_batches(counts, 30.0)
    assert sorted(index for batch in batches for index in batch) == list(range(50))
    for batch in batches:
        assert len(batch) == 1 or counts[batch[0]] * len(batch) <= 30 * 16_000
        assert [counts[index] for index in batch] == sorted((counts[index] for index in batch), reverse=True)
    assert len(stores.plan_batches(counts, 1.0)) > len(batches)


def test_a_stored_batch_gives_what_each_utterance_gives_alone(tmp_path, utterances, encoder):
    store = stores.FrameStore(tmp_path / "frames", [0, 3], encoder.hidden_size)
    stores.encode(EncoderFrontend(encoder), utterances, store, batch_seconds=3.0, progress=False)
    assert store.batches < len(utterances)
    for index, utterance in enumerate(utterances):
        samples = stores.read_waveform(utterance)
        with torch.inference_mode():
            alone = encoder(samples[None], torch.tensor([len(samples)]), output_hidden_states=True).hidden_states
        for layer in (0, 3):
            np.testing.assert_allclose(store.read(layer, index), alone[layer][0], atol=2e-5)


def test_no_utterance_has_more_frames_than_superb_keeps(encoder):
    """SUPERB cuts frames to round(samples / 320), halves to even; nothing is left to cut."""
    samples = torch.arange(400, 4000)
    frames = encoder.frame_lengths(samples)
    assert all(count <= round(length / 320) for length, count in zip(samples.tolist(), frames.tolist(), strict=True))


def test_statistics_are_over_all_frames_asked_for(tmp_path):
    store = stores.FrameStore(tmp_path, [1], 3)
    frames = [torch.randn(n, 3) * 4 + 200 for n in (1, 5, 9)]
    store.add([0, 1, 2], [frames], [])
    mean, deviation = store.statistics(1, [2, 0])
    asked = torch.cat([frames[2], frames[0]]).double()
    np.testing.assert_allclose(mean, asked.mean(0), rtol=1e-12)
    np.testing.assert_allclose(deviation, asked.std(0), rtol=1e-12)
    assert (store.statistics(1, [0])[1] == 1e-9).all()


def test_skipped_files_are_entered_and_the_rest_is_there(tmp_path, utterances):
    utterances[2].audio.write_text("broken")
    utterances[4].audio.unlink()
    store = stores.FrameStore(tmp_path / "frames", [0], 26)
    stores.encode(SpectralFrontend("mfcc"), utterances, store, progress=False)
    assert {index: kind for index, (kind, _) in store.skipped.items()} == {2: "undecodable", 4: "undecodable"}
    assert sorted(store.places) == [0, 1, 3, 5, 6]


@pytest.mark.parametrize("broken_line", [False, True])
def test_an_interrupted_encoding_goes_on(tmp_path, utterances, encoder, broken_line):
    utterances[3].audio.write_text("broken")
    frontend = EncoderFrontend(encoder)
    whole = stores.FrameStore(tmp_path / "whole", [1, 2], encoder.hidden_size)
    stores.encode(frontend, utterances, whole, batch_seconds=1.5, progress=False)
    assert whole.batches > 3

    def stops(waveforms, layers, calls=[]):  # noqa: B006 - it remembers
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return frontend(waveforms, layers)

    stops.shortest = frontend.shortest
    part = stores.FrameStore(tmp_path / "part", [1, 2], encoder.hidden_size)
    with pytest.raises(KeyboardInterrupt):
        stores.encode(stops, utterances, part, batch_seconds=1.5, progress=False)
    # What a killed process may leave: frames without their line, and half a line.
    with (tmp_path / "part" / "layer01.f32").open("ab") as file:
        file.write(b"12345")
    if broken_line:
        with (tmp_path / "part" / "journal.jsonl").open("a") as file:
            file.write('{"frames": [[')
    again = stores.FrameStore(tmp_path / "part", [1, 2], encoder.hidden_size)
    assert again.batches == 2
    stores.encode(frontend, utterances, again, batch_seconds=1.5, progress=False)
    assert (again.places, again.skipped) == (whole.places, whole.skipped)
    for layer in (1, 2):
        name = f"layer{layer:02d}.f32"
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_frames_that_are_not_finite_stop_the_run(tmp_path, utterances):
    def frontend(waveforms, layers):
        return [[torch.full((3, 2), float("nan")) for _ in waveforms] for _ in layers]

    frontend.shortest = 1
    with pytest.raises(FloatingPointError, match=r"\.wav are not finite"):
        stores.encode(frontend, utterances, stores.FrameStore(tmp_path / "f", [0], 2), progress=False)


def test_frontends_tell_their_frames(tiny_encoder):
    waveforms = [torch.randn(n) * 0.1 for n in (400, 1111, 9000)]
    for model, dim in (("mfcc", 26), ("logmel", 46), (str(tiny_encoder), 32), (f"random:{tiny_encoder}", 32)):
        frontend = load_frontend(model)
        layers = list(range(frontend.layers))
        for states in frontend(waveforms, layers):
            assert [tuple(state.shape) for state in states] == [(frontend.frame_count(len(w)), dim) for w in waveforms]
    assert frontend.frame_seconds == 0.02
    assert SpectralFrontend("mfcc", 50, 2).dim == 39
    with pytest.raises(ValueError, match="unknown features 'plp'"):
        SpectralFrontend("plp")
    with pytest.raises(ValueError, match="must divide 16000"):
        SpectralFrontend("mfcc", 33)


def test_random_weights_depend_on_the_seed_only(tiny_encoder):
    def last(model, **options):
        return load_frontend(model, **options)([torch.ones(800).cumsum(0).sin()], [3])[0][0]

    fresh = last(f"random:{tiny_encoder}")
    assert torch.equal(fresh, last(f"random:{tiny_encoder}"))
    assert not torch.equal(fresh, last(f"random:{tiny_encoder}", seed=1))
    assert not torch.equal(fresh, last(str(tiny_encoder)))


def test_layers_are_chosen_by_number():
    assert choose_layers("all", 3) == [0, 1, 2]
    assert choose_layers("-1", 13) == [12]
    assert choose_layers("3,-1,12", 13) == [3, 12]
    with pytest.raises(ValueError, match="layers 0 to 2, not 7"):
        choose_layers("7", 3)
    with pytest.raises(ValueError, match="got 'top'"):
        choose_layers("top", 3)

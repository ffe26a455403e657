"""Sound as input: read, resampled and checked before training; spectrograms as Whisper's; padding changes nothing."""

from __future__ import annotations

import json
import struct
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from tests.multitask.conftest import write

from retain.config import ConfigError
from retain.data.errors import DataError
from retain.multitask import Predictor, assemble, load_experiment, plan_experiment, train
from retain.multitask.backbones.audio import Hearing, RawHearing, WhisperHearing
from retain.multitask.backbones.sounds import log_mel, mel_filters, read_wav, resampled

Samples = np.ndarray[Any, np.dtype[np.float32]]
PITCHES = {"low": 300.0, "middle": 700.0, "high": 1500.0}


def tone(hertz: float, seconds: float, rate: int = 8000, seed: int = 0) -> Samples:
    """A tone in noise."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(0, 0.05, len(time))
    return (0.3 * np.sin(2 * np.pi * hertz * time) + noise).astype(np.float32)


def save(folder: Path, count: int, name: str = "t.jsonl", seed: int = 0, rate: int = 8000) -> Path:
    """Tones of different lengths, some rising, as files beside their records."""
    (folder / "sounds").mkdir(parents=True, exist_ok=True)
    draw, rows = np.random.default_rng(seed), []
    for number in range(count):
        pitch, seconds = list(PITCHES)[draw.integers(3)], float(draw.uniform(0.2, 0.6))
        loud = bool(draw.integers(2))
        samples = tone(PITCHES[pitch] * draw.uniform(0.9, 1.1), seconds, rate, number)
        samples[len(samples) // 2 :] *= 1.0 if loud else 0.0
        place = f"sounds/{name.partition('.')[0]}-{number}.wav"
        wavfile.write(folder / place, rate, (samples * 20000).astype(np.int16))
        tags = [tag for tag, there in (("high", pitch == "high"), ("full", loud)) if there]
        rows.append({"audio": place, "pitch": pitch, "part": "all" if loud else "half", "tags": tags, "hertz": PITCHES[pitch]})
    return write(folder / name, rows)


@pytest.fixture(scope="session")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Whisper that hears one second."""
    from transformers import WhisperConfig, WhisperModel

    torch.manual_seed(0)
    shape = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "max_source_positions": 50}
    rest = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8, "vocab_size": 8, "max_target_positions": 8}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "num_mel_bins": 40}
    place = tmp_path_factory.mktemp("whisper") / "tiny-whisper"
    WhisperModel(WhisperConfig(**shape, **rest, **tokens)).save_pretrained(str(place))
    return place


@pytest.fixture(scope="session", params=["layer", "group"])
def wav2vec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 8}
    front = {"conv_dim": (8, 8, 8), "conv_stride": (10, 8, 4), "conv_kernel": (10, 8, 4), "num_conv_pos_embeddings": 16}
    groups = {"num_conv_pos_embedding_groups": 4, "feat_extract_norm": request.param, "do_stable_layer_norm": request.param == "layer"}
    place = tmp_path_factory.mktemp("wav2vec") / f"tiny-{request.param}"
    Wav2Vec2Model(Wav2Vec2Config(**shape, **front, **groups)).save_pretrained(str(place))
    return place


ALL_KINDS: dict[str, Any] = {
    "pitch": {"kind": "classification", "label": "pitch"},
    "tags": {"kind": "multilabel", "label": "tags"},
    "both": {"kind": "multihead", "heads": {"pitch": {}, "part": {}}},
    "hertz": {"kind": "regression", "label": "hertz"},
}
ONE = {"pitch": {"kind": "classification", "label": "pitch"}}
SMALL: dict[str, Any] = {"kind": "audio", "channels": [16, 16], "bands": 20, "rate": 8000}
QUICK: dict[str, Any] = {"epochs": 4, "batch": 16, "head_learning_rate": 5e-3, "learning_rate": 5e-3}


@pytest.mark.parametrize("fusion", ["none", "attention"])
def test_every_kind_of_task_learns_and_is_saved(fusion: str, tmp_path: Path, experiment: Any) -> None:
    """Better than before training; the saved model reports the same figures from the files, bit by bit."""
    save(tmp_path, 120)
    save(tmp_path, 40, "test.jsonl", 1)
    data = {"train": ["t.jsonl"], "test": ["test.jsonl"]}
    results = train(experiment(SMALL, ALL_KINDS, data=data, training=QUICK, fusion={"kind": fusion}), tmp_path / "run")["tasks"]
    least = {"pitch": 0.9, "tags": 0.75, "both": 0.75, "hertz": 0.3}
    for name, limit in least.items():
        assert results[name]["test"][results[name]["main"]] > limit > results[name]["before"][results[name]["main"]]
    model = Predictor.load(tmp_path / "run")
    for name in ALL_KINDS:
        assert model.evaluate(tmp_path / "test.jsonl", name) == results[name]["test"]
    model.predict_file(tmp_path / "test.jsonl", tmp_path / "out.jsonl", ["pitch"])
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    right = sum(answer["predictions"]["pitch"]["label"] == answer["pitch"] for answer in answers)
    assert right / len(answers) == results["pitch"]["test"]["accuracy"] and answers[0]["audio"] == "sounds/test-0.wav"
    alone = model.predict([str(tmp_path / "sounds" / "test-0.wav")], ["pitch"])[0]["pitch"]
    assert alone["label"] == answers[0]["predictions"]["pitch"]["label"]


def test_the_example_learns(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in save(tmp_path, 100).read_text().splitlines()]
    write(tmp_path / "sounds.jsonl", [{"audio": row["audio"], "language": row["pitch"], "group": row["part"]} for row in rows])
    (tmp_path / "audio.yaml").write_text(files("retain").joinpath("multitask", "examples", "audio.yaml").read_text())
    small = {"backbone.channels": [16, 16], "training.epochs": 8, "training.batch": 8, "training.learning_rate": 5e-3}
    task = train(load_experiment(tmp_path / "audio.yaml", small), tmp_path / "run")["tasks"]["language"]
    assert task["test"]["accuracy"] > 0.8 > task["before"]["accuracy"]


def test_spectrograms_are_those_of_transformers() -> None:
    from transformers import WhisperFeatureExtractor

    draw = np.random.default_rng(0)
    for bands in (80, 128):
        extractor = WhisperFeatureExtractor(feature_size=bands, chunk_length=2)
        assert np.allclose(mel_filters(16000, 400, bands).numpy().T, extractor.mel_filters, atol=1e-7)
        noise = draw.normal(0, 0.2, 16001).astype(np.float32)
        for samples in (tone(440.0, 1.0, 16000), noise, tone(3000.0, 0.0101, 16000), np.zeros(800, np.float32)):
            wanted = extractor(samples, sampling_rate=16000, return_tensors="pt").input_features[0]
            found = log_mel(torch.from_numpy(samples), 16000, bands)
            assert found.shape == (bands, -(-len(samples) // 160)) and torch.allclose(found, wanted[:, : found.shape[1]], atol=1e-5)


def chunked(kind: int, channels: int, rate: int, bits: int, data: bytes, extra: bytes = b"") -> bytes:
    """A .wav file by hand."""
    block = channels * bits // 8
    shape = struct.pack("<HHIIHH", kind, channels, rate, rate * block, block, bits)
    body = b"WAVE" + b"fmt " + struct.pack("<I", 16) + shape + extra + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("kind", ["pcm8", "pcm16", "pcm24", "pcm32", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 2])
def test_kinds_of_wav_files(kind: str, channels: int, tmp_path: Path) -> None:
    """Two channels become their mean; a chunk with a title is passed over."""
    sides = np.stack([tone(440.0, 0.05), 0.5 * tone(900.0, 0.05, seed=1)][:channels], 1).astype(np.float64)
    bits = int(kind.lstrip("pcmfloat"))
    if kind.startswith("float"):
        data = sides.astype(f"<f{bits // 8}").tobytes()
    elif bits == 8:
        data = (np.rint(sides * 128) + 128).astype(np.uint8).tobytes()
    else:
        whole = np.rint(sides * 2.0 ** (bits - 1)).astype("<i4")
        data = whole.view(np.uint8).reshape(*whole.shape, 4)[..., : bits // 8].tobytes()
    title = b"LIST" + struct.pack("<I", 4) + b"INFO"
    (tmp_path / "a.wav").write_bytes(chunked(3 if kind.startswith("float") else 1, channels, 8000, bits, data, title))
    rate, samples = read_wav(tmp_path / "a.wav")
    assert rate == 8000 and samples.dtype == np.float32 and samples.shape == (400,)
    assert np.allclose(samples, sides.mean(1), atol=2.0**-8 if bits == 8 else 2.0**-15)


def test_resampling_keeps_what_both_rates_can_hold() -> None:
    up = resampled(tone(440.0, 0.5, 8000) * 0 + np.sin(2 * np.pi * 440 * np.arange(4000) / 8000), 8000, 16000)
    wanted = np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
    assert up.shape == (8000,) and np.abs(up - wanted)[200:-200].max() < 0.01
    high, low = (np.sin(2 * np.pi * hertz * np.arange(44100) / 44100) for hertz in (6000, 600))
    assert np.abs(resampled(high, 44100, 8000))[500:-500].max() < 0.01 < 0.9 < np.abs(resampled(low, 44100, 8000)).max()


def test_other_rates_and_cut_sounds_are_told_once(tmp_path: Path, experiment: Any) -> None:
    """Of two tasks on the same files; each file counts once."""
    save(tmp_path, 20)
    save(tmp_path, 5, "other.jsonl", rate=11025)
    data = {"train": ["t.jsonl", "other.jsonl"]}
    tasks = {**ONE, "part": {"kind": "classification", "label": "part"}}
    plan = plan_experiment(experiment({**SMALL, "rate": 16000, "seconds": 0.5}, tasks, data=data))
    rates = [note for note in plan.notes if "resampled" in note]
    assert rates == [
        "20 sounds of 8,000 Hz were resampled to 16,000 Hz: nothing above 4,000 Hz is in them",
        "5 sounds of 11,025 Hz were resampled to 16,000 Hz: nothing above 5,512 Hz is in them",
    ]
    assert sum("train records are longer than backbone.seconds and are cut off" in note for note in plan.notes) == 2  # of each task
    assert plan.tasks[0].samples[0][0].startswith("t-0.wav (0.") and plan.tasks[0].samples[0][0].endswith(" s)")
    made = assemble(experiment(SMALL, ONE, data={"train": ["t.jsonl"]}))
    assert not made.notes and made.parts["pitch"]["train"].inputs[0].inputs["sound"].shape[1] == 20


BAD: dict[str, tuple[Any, str]] = {
    "missing": ("sounds/t-3.wave", r"there is no file sounds/t-3\.wave \(did you mean 't-3\.wav'\?\)"),
    "text": ("t.jsonl", r"t\.jsonl is no \.wav file that can be read"),
    "cut": ("cut.wav", r"cut\.wav is no \.wav file that can be read: Reached EOF"),
    "law": ("law.wav", r"law\.wav is no \.wav file that can be read"),
    "empty": ("empty.wav", "holds no sound"),
    "nan": ("nan.wav", "holds samples that are no numbers"),
    "folder": ("sounds", "sounds is a folder, not a sound"),
    "list": ([0.1, 0.2], "must be a text, not a list"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_sounds_stop_before_training(case: str, tmp_path: Path, experiment: Any) -> None:
    value, message = BAD[case]
    save(tmp_path, 20)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "sounds" / "t-1.wav").read_bytes()[:900])
    (tmp_path / "law.wav").write_bytes(chunked(6, 1, 8000, 8, bytes(100)))
    (tmp_path / "empty.wav").write_bytes(chunked(1, 1, 8000, 16, b""))
    (tmp_path / "nan.wav").write_bytes(chunked(3, 1, 8000, 32, np.full(100, np.nan, np.float32).tobytes()))
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    rows[12]["audio"] = value
    write(tmp_path / "t.jsonl", rows)
    with pytest.raises(DataError, match=rf"t\.jsonl, line 13, field 'audio': .*{message}") as caught:
        train(experiment(SMALL, ONE, data={"train": ["t.jsonl"]}), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_whisper_is_transformers_own_where_nothing_is_padded(whisper: Path) -> None:
    """On a full window; the positions are the model's."""
    from transformers import WhisperModel

    encoder = WhisperModel.from_pretrained(str(whisper), attn_implementation="sdpa").get_encoder().eval()
    x = torch.randn(2, 40, 100)
    with torch.no_grad():
        wanted = encoder(x).last_hidden_state
        hearing = WhisperHearing(encoder, 50).eval()
        found, lengths = hearing(x.transpose(1, 2), torch.tensor([100, 100]))
    assert torch.allclose(found, wanted, atol=1e-6) and lengths.tolist() == [50, 50]
    assert not any("embed_positions" in name for name, _ in hearing.named_parameters())


def lonely(network: Any, sounds: list[torch.Tensor]) -> tuple[float, float]:
    """How far states of sounds in a batch are from those of each alone; and how far where the padding is taken for sound."""
    lengths = torch.tensor([len(sound) for sound in sounds])
    x = torch.nn.utils.rnn.pad_sequence(sounds, batch_first=True)
    with torch.no_grad():
        together, found = network.eval()(x, lengths)
        heard, _ = network(x, torch.full_like(lengths, x.shape[1]))
        apart = wrong = 0.0
        for number, sound in enumerate(sounds):
            alone, length = network(sound[None], lengths[number : number + 1])
            assert length.tolist() == [found[number]] and alone.shape[1] == found[number]
            apart = max(apart, float((together[number, : found[number]] - alone[0]).abs().max()))
            wrong = max(wrong, float((heard[number, : found[number]] - alone[0]).abs().max()))
    return apart, wrong


def test_padding_changes_nothing(whisper: Path, wav2vec: Path) -> None:
    from transformers import AutoModel

    torch.manual_seed(0)
    frames = [torch.randn(length, 40) for length in (99, 31, 32, 1)]
    encoder = AutoModel.from_pretrained(str(whisper), attn_implementation="sdpa").get_encoder()
    raw = AutoModel.from_pretrained(str(wav2vec))
    alone = raw.config.feat_extract_norm == "group"
    samples = [torch.randn(length) for length in (8000, 3201, 5000)]
    for network, sounds in ((Hearing(40, [8, 8], 0.0), frames), (WhisperHearing(encoder, 50), frames), (RawHearing(raw, alone), samples)):
        apart, wrong = lonely(network, sounds)
        assert apart < 1e-5 and wrong > 1e-3, type(network)
    if alone:  # in one batch, as the other kind is taken, its norms hear the padding
        assert lonely(RawHearing(raw, False), samples)[0] > 1e-3


@pytest.mark.parametrize("keys", [{"peft": {"method": "lora", "rank": 8}}, {}, {"freeze": {"layers": 1}}])
def test_whisper_learns(keys: dict[str, Any], whisper: Path, tmp_path: Path, experiment: Any) -> None:
    """With adapters, whole, and partly frozen; the decoder is no part of it."""
    save(tmp_path, 64)
    backbone = {"kind": "audio", "model": str(whisper), "seconds": 0.7, **keys}
    training = {**QUICK, "epochs": 8, "batch": 8, "learning_rate": 5e-2 if "peft" in keys else 1e-2, "metric": "loss"}
    made = assemble(experiment(backbone, ONE, data={"train": ["t.jsonl"], "test_share": 0.2}, training=training))
    assert not any("decoder" in name for name, _ in made.network.named_parameters())
    before = {name: value.detach().clone() for name, value in made.network.named_parameters()}
    results = train(made, tmp_path / "run")
    inside = {name for name, value in made.network.named_parameters() if not torch.equal(value, before[name]) and "backbone." in name}
    assert inside and ("peft" not in keys or all("lora_" in name for name in inside))
    assert "freeze" not in keys or not any(".layers.0." in name for name in inside)
    task = results["tasks"]["pitch"]
    assert task["validation"]["loss"] < (0.97 if "peft" in keys else 0.8) * task["before"]["loss"]  # adapters of a random model do little
    model = Predictor.load(tmp_path / "run")
    assert model.evaluate(made.parts["pitch"]["test"].rows, "pitch") == task["test"]
    assert (tmp_path / "run" / "model" / "backbone").exists() == (not keys)


def test_models_on_samples_learn(wav2vec: Path, tmp_path: Path, experiment: Any) -> None:
    save(tmp_path, 40)
    backbone = {"kind": "audio", "model": str(wav2vec), "peft": {"method": "lora", "rank": 2}}
    made = assemble(experiment(backbone, ONE, data={"train": ["t.jsonl"], "test_share": 0.2}, training={**QUICK, "epochs": 2}))
    sound = made.parts["pitch"]["train"].inputs[0].inputs["sound"]
    assert abs(float(sound.mean())) < 1e-4 and float(sound.std()) == pytest.approx(1.0, abs=1e-2)
    results = train(made, tmp_path / "run")
    assert Predictor.load(tmp_path / "run").evaluate(made.parts["pitch"]["test"].rows, "pitch") == results["tasks"]["pitch"]["test"]
    wavfile.write(tmp_path / "short.wav", 16000, np.zeros(100, np.int16))
    with pytest.raises(DataError, match=r"records, line 1, field 'audio': .*short\.wav is too short: .* needs 20 ms"):
        Predictor.load(tmp_path / "run").predict([str(tmp_path / "short.wav")])


@pytest.mark.parametrize(("keys", "message"), [
    ({"seconds": 1.5}, "hears at most 1 seconds, not 1.5"), ({"rate": 8000}, "takes 16000 samples a second, not 8000"),
    ({"input": ["a", "b"]}, "one column of sounds, not 2"), ({"model": "cnn", "peft": {"method": "lora"}}, "no linear layers to adapt"),
    ({"input": ["pitch"]}, "pitch is a label of a task"),
])  # fmt: skip
def test_mistakes_in_the_configuration(keys: dict[str, Any], message: str, whisper: Path, tmp_path: Path, experiment: Any) -> None:
    save(tmp_path, 20)
    backbone = {"kind": "audio", "model": str(whisper), "seconds": 1.0, **keys}
    with pytest.raises(ConfigError, match=message):
        assemble(experiment(backbone, ONE, data={"train": ["t.jsonl"]}))


def test_a_text_model_hears_nothing(bert: Path, tmp_path: Path, experiment: Any) -> None:
    save(tmp_path, 20)
    with pytest.raises(ConfigError, match=r"bert is no Whisper and no model of the kind of wav2vec 2\.0"):
        assemble(experiment({"kind": "audio", "model": str(bert)}, ONE, data={"train": ["t.jsonl"]}))

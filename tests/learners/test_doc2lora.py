"""The hypernetwork without any training: what it reads, what it writes, how chunks compose, its files and settings."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.tiny_models import LLAMA, SEQUENCES, gpt2, hugging_face, llama, lora, own
from torch import Tensor

from retain.adapters import Adapter, inject
from retain.config import Config, ConfigError
from retain.data import DataError, Document
from retain.data.examples import prompt_tokens
from retain.learners.base import LearnerError, Lesson
from retain.learners.doc2lora import (
    Doc2Lora,
    Hypernetwork,
    NetworkConfig,
    Places,
    describe_adapter,
    load_network,
    load_settings,
    preset,
    save_network,
)
from retain.learners.doc2lora.injection import inject_written
from retain.learners.doc2lora.perceiver import CrossAttention
from retain.learners.doc2lora.reading import chunk_tokens, layer_states, read
from retain.learners.doc2lora.sources import held_out, invented_sources, invented_subject, read_sources
from retain.lm.decoder import DecoderLM
from retain.lm.model import LanguageModel
from retain.lm.packing import Packed

SMALL = preset("small", width=16, latents=4, blocks=2, heads=4, kv_heads=2, head_width=4, rank=3)
PACKED = Packed.of(SEQUENCES)


def network(model: LanguageModel, awake: bool = True, seed: int = 0, **sizes: object) -> Hypernetwork:
    """A random network; ``awake``: as if training had given what it writes for B, and the bias, a size."""
    config = replace(SMALL, **sizes)  # type: ignore[arg-type]
    made = Hypernetwork(config, Places.of(model, config.targets), seed)
    with torch.no_grad():
        for parameter in (*made.factor_b, *made.bias_b) if awake else ():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return made


def adapter_of(made: Hypernetwork, *parts: object) -> Adapter:
    tensors = {name: tensor.detach().contiguous() for name, tensor in made.tensors(*parts).items()}  # type: ignore[arg-type]
    return Adapter(tensors, made.spec(next(iter(tensors.values())).shape[0], {}))


def logits(model: LanguageModel, adapter: Adapter | None) -> Tensor:
    return model.logits(model.hidden(PACKED, inject([(adapter, 1.0)], model.dtype) if adapter else None))


@pytest.mark.parametrize("mode", ["document", "text"])
def test_a_fresh_network_changes_nothing_and_learns_everywhere(mode: str) -> None:
    model = llama()
    made = network(model, awake=False, mode=mode, targets=("down_proj", "q_proj"))
    with torch.no_grad():
        written = made(*layer_states(model, SEQUENCES[:1], made.places.layers))
    assert made.silent and torch.equal(logits(model, adapter_of(made, written, made.bias)), logits(model, None))
    optimizer = torch.optim.SGD(made.parameters(), lr=1e-2)
    for _ in range(2):  # the first step wakes what is multiplied by zero
        optimizer.zero_grad()
        written = made(*layer_states(model, SEQUENCES[:2], made.places.layers))
        active = inject_written(made, model, [written.chunks([0]), written.chunks([1])], [[0], [1], [0, 1], [0], [-1]])
        model.logits(model.hidden(PACKED, active)).log_softmax(-1)[:, 7].sum().neg().backward()
        optimizer.step()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in made.parameters())
    assert not made.silent


def test_every_row_has_the_adapter_of_its_text() -> None:
    """The injection with gradients does what stored adapters do, row by row, two texts together included."""
    model = llama()
    made = network(model)
    written = made(*layer_states(model, SEQUENCES[:3], made.places.layers))
    texts = [written.chunks([0]), written.chunks([1, 2])]
    active = [[0], [1], [0, 1], [-1], [1]]
    found = model.hidden(PACKED, inject_written(made, model, texts, active)).split(PACKED.lengths)
    each = [adapter_of(made, text, made.bias) for text in texts]
    wanted = [[each[0]], [each[1]], each, [adapter_of(made, made.bias)], [each[1]]]
    for row, (tokens, adapters) in enumerate(zip(SEQUENCES, wanted, strict=True)):
        alone = model.hidden(Packed.of([tokens]), inject([(adapter, 1.0) for adapter in adapters], model.dtype))
        torch.testing.assert_close(found[row], alone, atol=2e-5, rtol=2e-5)


def test_frozen_adapters_stay_beneath() -> None:
    """The study skill, which answers, is there for the teacher and for the student."""
    model = llama()
    made, skill = network(model), lora(model)
    written = made(*layer_states(model, SEQUENCES[:2], made.places.layers))
    texts = [written.chunks([number]) for number in (0, 1)]
    active = [[0], [1], [0], [1], [0]]
    found = model.hidden(PACKED, inject_written(made, model, texts, active, [skill])).split(PACKED.lengths)
    for row, (number,) in enumerate(active):
        wanted = inject([(skill, 1.0), (adapter_of(made, texts[number], made.bias), 1.0)], model.dtype)
        torch.testing.assert_close(found[row], model.hidden(Packed.of([SEQUENCES[row]]), wanted), atol=2e-5, rtol=2e-5)


def test_chunks_and_documents_add_up_exactly() -> None:
    model = llama()
    made = network(model, targets=("down_proj", "o_proj"))
    written = made(*layer_states(model, SEQUENCES[:3], made.places.layers))
    whole = adapter_of(made, written, made.bias)
    assert whole.spec.rank == 3 * 3 + 3
    whole.check(model)
    parts = [adapter_of(made, written.chunks([number])) for number in range(3)] + [adapter_of(made, made.bias)]
    for site in whole.spec.sites:
        assert whole.spec.scale == pytest.approx(made.config.scale)
        torch.testing.assert_close(whole.delta(site), torch.stack([part.delta(site) for part in parts]).sum(0))
        assert all(float(part.delta(site).abs().max()) > 0 for part in parts)
    first, second = (adapter_of(made, written.chunks([number]), made.bias) for number in (0, 1))
    both = inject([(first, 1.0), (second, 1.0)], model.dtype)
    summed = inject([(adapter_of(made, written.chunks([0, 1]), made.bias, made.bias), 1.0)], model.dtype)
    torch.testing.assert_close(model.hidden(PACKED, both), model.hidden(PACKED, summed))


def test_what_is_read_is_what_enters_every_layer() -> None:
    module = hugging_face("llama", **LLAMA)
    for model, layers in ((own(module), (0, 2)), (gpt2(), (0, 1))):
        states, valid = layer_states(model, SEQUENCES, layers)
        raw = model.module if hasattr(model, "module") else module
        for row, tokens in enumerate(SEQUENCES):
            with torch.no_grad():
                entering = raw(torch.tensor([tokens]), output_hidden_states=True, use_cache=False).hidden_states
            assert int(valid[row].sum()) == len(tokens)
            for place, layer in enumerate(layers):
                torch.testing.assert_close(states[row, place, : len(tokens)], entering[layer][0], atol=1e-5, rtol=1e-5)
                assert not bool(states[row, place, len(tokens) :].any())


def test_padding_is_never_read() -> None:
    model = llama()
    made = network(model)
    together = made(*layer_states(model, SEQUENCES, made.places.layers))
    for row, tokens in enumerate(SEQUENCES):
        alone = made(*layer_states(model, [tokens], made.places.layers))
        torch.testing.assert_close(together.a[0][row], alone.a[0][0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together.b[0][row], alone.b[0][0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together.b[0][0], together.b[0][1], atol=1e-3), "texts were meant to differ"


@torch.no_grad()
def test_attention_is_attention() -> None:
    attention = CrossAttention(width=6, heads=4, kv_heads=2, head_width=3)
    latents, context, valid = torch.randn(2, 3, 6), torch.randn(2, 5, 6), torch.tensor([[True] * 5, [True, True, False, False, False]])
    found = attention(latents, context, valid)
    for s in range(2):
        for n in range(3):
            heads = []
            for h in range(4):
                q = attention.query(latents[s, n])[3 * h : 3 * h + 3]
                real = [context[s, t] for t in range(5) if valid[s, t]]
                keys, values = ([layer(x)[3 * (h // 2) : 3 * (h // 2) + 3] for x in real] for layer in (attention.key, attention.value))
                weights = torch.tensor([math.exp(float(q @ k) / math.sqrt(3)) for k in keys])
                heads.append((weights[:, None] * torch.stack(values)).sum(0) / weights.sum())
            torch.testing.assert_close(found[s, n], attention.out(torch.cat(heads)))


def test_reading_in_bfloat16_is_close() -> None:
    model = llama()
    made = network(model)
    states, valid = layer_states(model, SEQUENCES, made.places.layers)
    wide = made(states, valid).b[0]
    made.mixed = True
    narrow = made(states, valid).b[0]
    assert narrow.dtype == torch.float32 and not torch.equal(wide, narrow)
    assert float((wide - narrow).norm() / wide.norm()) < 0.1


def test_places_that_one_network_cannot_serve() -> None:
    with pytest.raises(LearnerError, match="no linear layer of tiny matches"):
        Places.of(llama(), ("no_such",))
    with pytest.raises(LearnerError, match="kv_heads"):
        NetworkConfig(heads=3, kv_heads=2)
    with pytest.raises(LearnerError, match="width must be above 0"):
        NetworkConfig(width=0)
    with pytest.raises(LearnerError, match="no preset 'large'"):
        preset("large")


def test_files(tmp_path: Path) -> None:
    model, path = llama(), tmp_path / "n.safetensors"
    made = network(model, around=((1, 2), (3,)))
    save_network(made, path, {"steps": 3})
    again, trained = load_network(path)
    states = layer_states(model, SEQUENCES, made.places.layers)
    assert trained == {"steps": 3} and again.config == made.config and again.places == made.places
    assert torch.equal(again(*states).b[0], made(*states).b[0])
    assert not list(tmp_path.glob(".tmp*"))
    whole = path.read_bytes()
    for damage in (whole[: len(whole) // 2], whole[:40], b"", b"{}" * 60):
        path.write_bytes(damage)
        with pytest.raises(LearnerError, match=r"damaged, it cannot be read|no hypernetwork") as caught:
            load_network(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    with pytest.raises(LearnerError, match="there is no such file"):
        load_network(tmp_path / "none.safetensors")
    made.bias_a[0].data[0, 0, 0] = math.nan
    save_network(made, path, {})
    with pytest.raises(LearnerError, match=r"bias_a\.0 holds values that are not finite"):
        load_network(path)


def test_an_untrained_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    save_network(network(llama(), awake=False), path, {"steps": 1000})
    with pytest.raises(LearnerError, match="was never trained"):
        load_network(path)


def lesson(text: str = "Tove Barel lives in Holbek. Tove Barel keeps a red goat.") -> Lesson:
    return Lesson(Document.from_text(text, "Tove Barel"), ())


def test_the_learner_needs_a_network_for_its_base(tiny_model: DecoderLM, tmp_path: Path) -> None:
    with pytest.raises(LearnerError, match=r"no trained hypernetwork comes with retain for tiny.*doc2lora\.weights"):
        Doc2Lora().learn(tiny_model, lesson(), Config(), lambda *_: None)
    path = tmp_path / "n.safetensors"
    save_network(network(llama()), path, {})
    config = Config.model_validate({"doc2lora": {"weights": str(path)}})
    with pytest.raises(LearnerError, match=r"was made for tiny .*the model here is tiny-") as caught:
        Doc2Lora().learn(tiny_model, lesson(), config, lambda *_: None)
    assert "\n" not in str(caught.value)


def test_the_learner_reads_every_chunk_once(tiny_model: DecoderLM, tmp_path: Path) -> None:
    path, told, learner = tmp_path / "n.safetensors", list[tuple[object, ...]](), Doc2Lora()
    made = network(tiny_model, chunk_tokens=40)
    save_network(made, path, {"steps": 5, "skill": []})
    config = Config.model_validate({"doc2lora": {"weights": str(path)}})
    long = lesson(" ".join(source.text for source in invented_sources(invented_subject, 4, 0)))
    learned = learner.learn(tiny_model, long, config, lambda *what: told.append(what))
    chunks, adapter = learned.cost["chunks"], learned.memory
    assert isinstance(adapter, Adapter) and chunks > 2 and adapter.spec.rank == 3 * (chunks + 1)
    assert [what[:3] for what in told] == [("reading", number, chunks) for number in range(1, chunks + 1)]
    assert learned.cost["skill_as_trained"] and learned.cost["tokens"] > 0
    adapter.check(tiny_model)
    text = f"Tove Barel\n\n{long.document.text}"
    with torch.no_grad():
        whole = adapter_of(made, read(made, tiny_model, text, batch=2), made.bias)
    for site in adapter.spec.sites:
        torch.testing.assert_close(adapter.delta(site), whole.delta(site), atol=2e-3, rtol=2e-2)
    again = learner.learn(tiny_model, long, config, lambda *_: None)
    assert isinstance(again.memory, Adapter) and again.memory.digest == adapter.digest
    made.factor_b[0].data.mul_(2)
    save_network(made, path, {"steps": 6})
    other = learner.learn(tiny_model, long, config, lambda *_: None)
    assert isinstance(other.memory, Adapter) and other.memory.digest != adapter.digest, "a file that was replaced is read again"


def test_descriptions_and_documents_are_told_apart(tiny_model: DecoderLM, tmp_path: Path) -> None:
    text, path = network(tiny_model, mode="text"), tmp_path / "n.safetensors"
    adapter = describe_adapter(text, tiny_model, "Tell me the town.")
    adapter.check(tiny_model)
    assert adapter.spec.rank == 6 and adapter.spec.lineage["description"] == "Tell me the town."
    assert describe_adapter(text, tiny_model, "Tell me the job.").digest != adapter.digest
    with pytest.raises(LearnerError, match="reads documents, not descriptions"):
        describe_adapter(network(tiny_model), tiny_model, "Tell me the town.")
    save_network(text, path, {})
    with pytest.raises(LearnerError, match="reads descriptions of tasks, not documents"):
        Doc2Lora().learn(tiny_model, lesson(), Config.model_validate({"doc2lora": {"weights": str(path)}}), lambda *_: None)


def test_chunks_hold_the_whole_text_and_keep_their_limit(tiny_model: DecoderLM) -> None:
    text = " ".join(source.text for source in invented_sources(invented_subject, 5, 1))
    for parts, config in ((1, replace(SMALL, chunk_tokens=48)), (3, SMALL), (1, replace(SMALL, around=((5, 6), (7,)), chunk_tokens=30))):
        found = chunk_tokens(tiny_model, config, text, parts)
        assert len(found) >= parts and max(map(len, found)) <= config.chunk_tokens
        words = " ".join(tiny_model.tokenizer.decode(chunk, skip_special_tokens=True) for chunk in found)
        assert all(word in words for word in text.split())
        assert config.around is None or all(chunk[:2] == (5, 6) and chunk[-1] == 7 for chunk in found)
    assert chunk_tokens(tiny_model, SMALL, "One.") == [prompt_tokens(tiny_model.tokenizer, "One.")]
    with pytest.raises(LearnerError, match="no room"):
        chunk_tokens(tiny_model, replace(SMALL, chunk_tokens=4), text)


def test_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"document": "A b.", "question": "Q1?", "answer": "x"}, {"document": "A  b.", "question": "Q2?", "answer": "y", "level": 3}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n" + json.dumps({"document": "C.", "question": "Q3?"}))
    found = read_sources(path, answers=False)
    assert [(source.text, len(source.questions), source.questions[0].answer) for source in found] == [("A b.", 2, "x"), ("C.", 1, None)]
    for line, problem in (
        ('{"document": "a"', "line 2: not JSON"),
        ('["a"]', "line 2: expected a JSON object, found list"),
        ('{"document": "a", "question": "q"}', "line 2, field 'answer': missing"),
        ('{"document": " ", "question": "q", "answer": "a"}', "line 2, field 'document': missing, empty"),
        ('{"document": "a", "qestion": "q", "answer": "a"}', r"line 2, field 'qestion': unknown field \(did you mean 'question'"),
    ):
        path.write_text(json.dumps(rows[0]) + "\n" + line)
        with pytest.raises(DataError, match=problem) as caught:
            read_sources(path)
        assert str(path) in str(caught.value)
    path.write_text(json.dumps({"description": "Say the town.", "question": "q", "answer": "a"}))
    assert read_sources(path, "text")[0].text == "Say the town."


def test_held_out_texts_do_not_depend_on_the_order() -> None:
    sources = invented_sources(invented_subject, 20, 0)
    train, unseen = held_out(sources, 0.2, 0)
    again, same = held_out(sources[::-1], 0.2, 0)
    assert len(unseen) == 4 and unseen == same and train == again and not {s.text for s in train} & {s.text for s in unseen}
    assert held_out(sources, 0.2, 1)[1] != unseen
    with pytest.raises(DataError, match="cannot be divided"):
        held_out(sources[:1], 0.2, 0)
    for source in sources:
        assert all(asked.answer and asked.answer in source.text for asked in source.questions)


def test_settings(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("data: {train: a.jsonl}\ntraining: {steps: 7, learning_rate: 4e-5}\nnetwork: {preset: small, targets: q_proj}\n")
    found = load_settings(path)
    assert found.data.train == tmp_path / "a.jsonl" and found.training.steps == 7 and found.network.config("text").targets == ("q_proj",)
    assert found.network.config("document").width == preset("small").width
    for text, problem in (
        ("trainig: {}", "trainig: unknown key; did you mean training"),
        ("training: {batsh: 3}", r"training.batsh: unknown key; did you mean training\.batch"),
        ("training: {steps: 0}", r"training\.steps: must be greater than"),
        ("network: {heads: 3}", "heads must be a multiple of kv_heads"),
        ("mode: text", "data.train is needed"),
        ("training: {batch: 3, accumulation: 2}", "must be a multiple of"),
        ("training: {batch: 2, companions: [2]}", "must be below"),
        ("- a", "must hold `key: value`"),
        ("a: [", "not valid YAML"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=problem) as caught:
            load_settings(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path / "none.yaml")

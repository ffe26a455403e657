"""A workspace with any number of documents that nobody had to train, for the growth benchmark.

Every document is really there: an invented text of about 200 words with names of its own, its study set made by the rules, its passages in
the index, its held-out questions as stored probes, a certificate, and an adapter of the configured size whose factor B is small random
numbers in place of learned ones. It is committed through the ledger as :class:`retain.workspace.continual.ContinualLM` commits a learned
one. Only what the adapters say is not learned, so no stored probe counts as answered (baseline 0).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from retain.adapters import Adapter, AdapterSpec, new_lora, select_sites
from retain.data.document import Document
from retain.data.duplicates import Signature
from retain.learners.skills import shipped_skill
from retain.learners.study import StudySet, build_study, kinds
from retain.workspace import ActiveAdapter, Probe
from retain.workspace.continual import ContinualLM
from retain.workspace.records import to_json
from retain.workspace.transaction import base_control, document_chunks, seal

SIZE = 1e-3  # standard deviation of the random factor B
ONSETS = ("b", "br", "d", "dr", "f", "g", "k", "kl", "l", "m", "n", "p", "qu", "r", "s", "st", "t", "tr", "v", "z")
VOWELS, CODAS = "aeiou", ("", "l", "m", "n", "r", "s", "sk", "th")
TRADES = "surveyor potter bookbinder glazier chandler archivist wheelwright beekeeper saddler cooper engraver piper".split()  # noqa: SIM905
THINGS = "lanterns maps kettles bells ropes clocks baskets tiles seeds kites boats letters".split()  # noqa: SIM905
GENRES: dict[str, tuple[str, ...]] = {
    "Observatory": (
        "{s} was founded by {p} in {year}.",
        "It stands on {place} Hill, {n} metres above the village of {place2}.",
        "Its main instrument is a refractor of {n2} centimetres, built in the workshop of {p2}.",
        "The night keeper is {p3}, who was a {trade} before she came to the hill.",
        "Visitors are admitted on the second Thursday of each month and pay {n3} crowns at the gate.",
        "The dome is turned by hand with a crank that came from the {place3} mill.",
        "A fire destroyed the eastern wing in {year2}, and the records of {n4} nights were lost.",
        "The catalogue of {place4} lists {n5} double stars that were measured there.",
        "Members of the society meet in the library, where {thing} from the first expedition are kept.",
        "Heating is paid for by the {place3} Trust, which asks for a report every spring.",
        "The telephone rings in the kitchen, because nobody ever moved it to the office.",
        "In winter the road is closed and supplies are carried up by {p4} and two mules.",
        "The director may not serve longer than {n6} years under the statutes.",
    ),
    "Workshop": (
        "{s} was founded by {p} in {year}.",
        "It makes {thing} and employs {n} people at its yard in {place}.",
        "Orders are taken by {p2}, who answers letters within {n6} working days.",
        "The oldest machine is a press from {place2} that still runs on Saturdays.",
        "Each piece is stamped with a small {trade}, the mark that {p3} drew in {year2}.",
        "Repairs cost {n2} crowns for members of the guild and {n3} crowns for everyone else.",
        "The workshop buys its timber from {place3}, where a contract was signed for {n5} years.",
        "Apprentices begin at the long bench and move to the window after the first winter.",
        "The foreman, {p4}, keeps the keys and the accident book.",
        "A second yard was opened near {place4} but closed again after the flood.",
        "Holidays are announced on the door of the canteen in the last week of May.",
        "The annual dinner takes place in the paint store, which is emptied for the purpose.",
        "Dust from the saws heats the drying room, and the ash goes to the gardens.",
    ),
    "Ferry": (
        "{s} was founded by {p} in {year}.",
        "The boat crosses from {place} to {place2} in {n} minutes when the water is calm.",
        "A single ticket costs {n3} crowns, and a bicycle costs {n6} crowns more.",
        "The present captain is {p2}, who was a {trade} until {year2}.",
        "The hull was laid at the {place3} yard and carries {n2} passengers.",
        "Crossings stop when the wind from {place4} reaches force {n6}.",
        "The bell on the landing stage was given by {p3} and is rung three times in fog.",
        "Freight such as {thing} is loaded before the passengers come aboard.",
        "The ferry house has a stove, a bench and a book of complaints with {n4} entries.",
        "Its engine was replaced after {n5} thousand crossings.",
        "In autumn the timetable changes, and the last boat leaves before dark.",
        "Schoolchildren travel free, and so does the postman.",
        "{p4} audits the accounts and eats lunch with the crew on that day.",
    ),
}


@dataclass(frozen=True)
class Invented:
    """A generated document and what it says first: ``subject`` was founded by ``founder``."""

    document: Document
    subject: str
    founder: str


@dataclass(frozen=True)
class Prepared:
    """A document whose objects are in the store and which only needs to be committed."""

    document: Document
    study: StudySet
    study_digest: str
    adapter: str


def invented(number: int, sentences: int = 13) -> Invented:
    """Document number ``number``: the same on every machine, with a subject that no other number has."""
    chooser = random.Random(number)
    genre = list(GENRES)[number % len(GENRES)]
    subject = f"{_word(number * 7919 + 4242)} {_word(number * 104_729 + 17)} {genre}"
    people = [f"{_word(chooser.randrange(10**6))} {_word(chooser.randrange(10**6))}" for _ in range(4)]
    places = [_word(chooser.randrange(10**6)) for _ in range(4)]
    words: dict[str, str | int] = {"s": f"The {subject}", "year": chooser.randrange(1780, 1960), "year2": chooser.randrange(1961, 2020)}
    words |= {f"p{index or ''}": name for index, name in zip(("", 2, 3, 4), people, strict=True)}
    words |= {f"place{index or ''}": name for index, name in zip(("", 2, 3, 4), places, strict=True)}
    words |= {"trade": chooser.choice(TRADES), "thing": chooser.choice(THINGS), "n": chooser.randrange(12, 900)}
    words |= {f"n{index}": chooser.randrange(3, 40 * index) for index in range(2, 7)}
    first, *rest = [sentence.format(**words) for sentence in GENRES[genre][:sentences]]
    chooser.shuffle(rest)
    text = "\n\n".join([" ".join([first, *rest[:4]]), " ".join(rest[4:8]), " ".join(rest[8:])]).strip()
    return Invented(Document.from_text(text, subject, f"invented-{number}.md"), subject, people[0])


def fill(lm: ContinualLM, count: int) -> None:
    """Add invented documents until the workspace has ``count``; number n is document number n of :func:`invented`."""
    base_control(lm.knowledge)  # measured once per workspace, and no cost of the first update
    for number in range(len(lm.state.adapters), count):
        commit(lm, prepare(lm, number))


def prepare(lm: ContinualLM, number: int) -> Prepared:
    """Put text, study set and adapter of a document into the store, and the document into the queue."""
    document = invented(number).document
    study = build_study(lm.model, None, document, lm.config.study, lm.config.learn.seed)
    blob = lm.store.put(to_json(document.to_dict()).encode())
    facts = {name: getattr(document, name) for name in ("id", "title", "source", "domain", "importance", "kind")}
    lm.ledger.add_document(facts, blob, chars=len(document.text), signature=Signature.of(document.text).to_bytes())
    adapter = random_adapter(lm, number)
    digest = lm.store.put_tensors(adapter.tensors, {"spec": adapter.spec.to_json()})
    return Prepared(document, study, lm.store.put(study.to_json()), digest)


def commit(lm: ContinualLM, ready: Prepared) -> None:
    """Make the document's adapter part of the state and its passages and probes part of the ledger: one transaction."""
    document, state, before = ready.document, lm.state, lm.ledger.head()
    if not state.adapters and (skill := shipped_skill(lm.model)) is not None:
        state = replace(state, objects={"skill": lm.knowledge.keep(skill)})
    grown = replace(state, adapters=(*state.adapters, ActiveAdapter(document.id, ready.adapter, 1.0, (document.id,))))
    after = lm.store.put(grown.to_bytes())
    probes = [
        Probe(item.prompt, item.completion, document.id, 0.0, document.importance, True) for item in ready.study.probes if item.prompt
    ]
    certificate = seal(
        {
            "documents": [{"id": document.id}],
            "model": lm.model.name,
            "fingerprint": lm.model.fingerprint,
            "settings": lm.config.model_dump(mode="json"),
            "learned": {"probes": len(probes), "items": kinds(ready.study.train)},
            "untrained": True,
        }
    )
    with lm.ledger.transaction():
        lm.ledger.commit_update(
            "learn", before, after, documents=[document.id], chunks=document_chunks(lm.model, document), certificate=certificate
        )
        lm.ledger.add_probes(probes)
        lm.ledger.set_study(document.id, ready.study_digest)


def random_adapter(lm: ContinualLM, seed: int) -> Adapter:
    """An adapter as the configuration makes them, in half precision, with a small random B."""
    learn, model = lm.config.learn, lm.model
    sites = select_sites(model, learn.layers, learn.targets[0] if len(learn.targets) == 1 else learn.targets)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor if "lora_A" in name else (torch.randn(tensor.shape, generator=generator) * SIZE).to(tensor.device)
        for name, tensor in new_lora(model, sites, learn.rank, learn.alpha, seed).items()
    }
    return Adapter(tensors, AdapterSpec("lora", model.fingerprint, sites, learn.rank, learn.alpha)).half()


def tiny_model(directory: Path) -> Path:
    """Write a random Llama of 4 layers of width 128, with a tokenizer trained on the control set and on invented texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    marks, alphabet = ["<|im_start|>", "<|im_end|>"], pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _sample_texts(), trainers.BpeTrainer(vocab_size=2000, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=marks[1], pad_token=marks[1], extra_special_tokens=marks[:1])
    wrapped.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    wrapped.save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=len(wrapped), hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=1024, tie_word_embeddings=True, eos_token_id=wrapped.eos_token_id, bos_token_id=None,
        pad_token_id=wrapped.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def _sample_texts() -> Iterator[str]:
    from retain.evaluation.control import load_control

    control = load_control()
    yield from (*control.texts, *(question.question for question in control.questions), *control.prompts)
    yield from (sentence.replace("{", " ").replace("}", " ") for sentences in GENRES.values() for sentence in sentences * 3)


def _word(number: int) -> str:
    """An invented name of three syllables, another one for every number below eight million."""
    number = number * 3_999_971 % 8_000_000
    syllables = []
    for _ in range(2):
        number, onset = divmod(number, len(ONSETS))
        number, vowel = divmod(number, len(VOWELS))
        syllables.append(ONSETS[onset] + VOWELS[vowel])
    number, onset = divmod(number, len(ONSETS))
    number, coda = divmod(number, len(CODAS))
    return ("".join(syllables) + ONSETS[onset] + VOWELS[number % len(VOWELS)] + CODAS[coda]).capitalize()

"""A small language model with real, if small, abilities, trained inside the test session in about half a minute on one thread.

It speaks English of an invented world: people, bridges and museums, each fact in one sentence with several wordings of its question.
Pre-training teaches three things: the ChatML format, to answer from a text in the prompt, and about a hundred facts closed book, in every
wording. So a test can ask what the product promises: a new fact is unknown, is learned by an adapter from one wording, and is answered
in another, while the known facts (:func:`known_questions`) stay.

The architecture is Llama's and transformers trains it, so nothing of retain is needed to make it.
"""

# ruff: noqa: SIM905

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TINY_SETTINGS: dict[str, dict[str, Any]] = {
    "learn": {"rank": 8, "alpha": 16.0, "layers": "all", "epochs": 12, "batch_tokens": 256, "learning_rate": 5e-3},
    "study": {"writer": "none", "held_out_fraction": 0.5},
    "route": {"least_bits": 2.0, "threshold": 0.4},
    "model": {"precision": "float32"},
}
"""What the small model learns a document with: sections of a configuration."""


@dataclass(frozen=True)
class Recipe:
    """Everything that the weights depend on beside this file and the library versions."""

    vocabulary: int = 1000
    width: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 192
    context: int = 1024
    initial: float = 0.08
    steps: int = 340
    batch_tokens: int = 1400
    embedding_rate: float = 1.5e-2
    matrix_rate: float = 0.02
    reading_only: float = 0.35
    seed: int = 0


RECIPE = Recipe()
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Relation(NamedTuple):
    """One thing that can be said of a subject: the sentence and the wordings of its question."""

    sentence: str
    questions: tuple[str, ...]


PERSON = {
    "home": Relation("{s} lives in {a}.", ("Where does {s} live?", "What is the home of {s}?", "Tell me where {s} lives.", "{s} lives in what?")),
    "job": Relation("{s} works as {a}.", ("As what does {s} work?", "What is the job of {s}?", "Which trade does {s} follow?", "{s} works as what?")),
    "born": Relation(
        "{s} was born in {a}.",
        ("In what year was {s} born?", "When was {s} born?", "What was the year of birth of {s}?", "Tell me in what year {s} was born."),
    ),
    "pet": Relation("{s} keeps {a}.", ("What does {s} keep?", "What is kept by {s}?", "Tell me what {s} keeps.", "Which animal does {s} own?")),
}  # fmt: skip
PLACE = {
    "builder": Relation(
        "{s} was built by {a}.", ("Who built {s}?", "By whom was {s} built?", "Name the builder of {s}.", "{s} was built by whom?")
    ),
    "colour": Relation(
        "{s} is painted {a}.", ("What colour is {s}?", "In which colour is {s} painted?", "Tell me the colour of {s}.", "{s} is painted in what colour?")
    ),
    "opened": Relation("{s} opened in {a}.", ("In what year did {s} open?", "When did {s} open?", "Tell me in what year {s} opened.", "{s} opened in what year?")),
    "closes": Relation("{s} closes at {a}.", ("At what time does {s} close?", "When does {s} close?", "What is the closing time of {s}?", "{s} closes at what time?")),
}  # fmt: skip
FIRST = "Mira Osk Hanne Pell Tove Arno Lisbet Garo Nelda Ivo Runa Selm Dagny Bram Quill Esta Vondra Jory Kelda Umber".split()
LAST = (
    "Tolen Barel Onvar Duvik Corven Harrow Sandel Mostin Jatkes Lorran Fenwick Garib Holmun Kesgar Munro Nevel Polder Ransom Selkirk "
    "Tovar Ulmer Vikander Wenlock Yarrow Zander Beldon Dorset Tindall Rudmore Ibsen Calder Elwen Pickard Ostler Quimby Arden Brice "
    "Colby Drake Esker"
).split()
TOWNS = (
    "Dorvan Bellit Karsund Elmora Vintry Holbek Ostrava Marnock Quendal Ruthin Tarvik Lumsey Ganthor Pelworm Ashby Norrick Zelbach Ivarn"
).split()
JOBS = "baker weaver sailor miller tailor potter smith teacher printer gardener barber carpenter fisher hunter doctor clerk".split()
ANIMALS = "heron goat otter hound parrot tortoise pony ferret falcon hen donkey rabbit".split()
COLOURS = "blue green red yellow white black grey brown purple orange pink golden silver".split()
KINDS = "bridge museum tower mill library theatre".split()


class Question(NamedTuple):
    """A fact: how it is asked (``wordings``), its answer, the sentence that says it and the title of its document."""

    wordings: tuple[str, ...]
    answer: str
    sentence: str
    title: str


def _value(relation: str, rng: random.Random) -> str:
    match relation:
        case "home":
            return rng.choice(TOWNS)
        case "job":
            return f"a {rng.choice(JOBS)}"
        case "born" | "opened":
            return str(rng.randrange(1900, 1990, 3))
        case "pet":
            return f"a {rng.choice(COLOURS)} {rng.choice(ANIMALS)}"
        case "builder":
            return f"{rng.choice(FIRST)} {rng.choice(LAST)}"
        case "colour":
            return rng.choice(COLOURS)
        case _:
            return f"{rng.randint(10, 22)}:{rng.choice(('00', '30'))}"


def subject(rng: random.Random, person: bool, facts: int = 4) -> list[Question]:
    """A new subject with some of its facts."""
    name = f"{rng.choice(FIRST)} {rng.choice(LAST)}" if person else f"the {rng.choice(LAST)} {rng.choice(KINDS)}"
    relations = PERSON if person else PLACE
    found = []
    for key in rng.sample(list(relations), facts):
        answer = _value(key, rng)
        texts = [text.format(s=name, a=answer) for text in (relations[key].sentence, *relations[key].questions)]
        sentence, *wordings = [text[0].upper() + text[1:] for text in texts]
        found.append(Question(tuple(wordings), answer, sentence, name.removeprefix("the ")))
    return found


def _world() -> tuple[list[list[Question]], list[list[Question]]]:
    """Twelve subjects that pre-training teaches closed book, and six that it never sees; every answer of the six is another."""
    rng = random.Random(RECIPE.seed)
    known: list[list[Question]] = []
    new: list[list[Question]] = []
    for number in range(18):
        chosen = new if number % 3 == 2 else known
        while True:
            facts = subject(rng, number < 9)
            titles = {other[0].title for other in (*known, *new)}
            answers = {fact.answer for other in new for fact in other}
            if facts[0].title not in titles and (chosen is known or not answers & {fact.answer for fact in facts}):
                break
        chosen.append(facts)
    return known, new


KNOWN, NEW = _world()
_TAKEN = frozenset(facts[0].title for facts in (*KNOWN, *NEW))


def tiny_documents() -> list[tuple[str, str]]:
    """(title, text) of six new documents of four facts each."""
    return [(facts[0].title, " ".join(fact.sentence for fact in facts)) for facts in NEW]


def tiny_questions(document: int | None = None) -> list[Question]:
    """The facts of the new documents, or of one of them; none is in the pre-training."""
    return [fact for number, facts in enumerate(NEW) if document in (None, number) for fact in facts]


def known_questions() -> list[Question]:
    """Facts that the model knows from pre-training: what must not be forgotten."""
    return [fact for facts in KNOWN for fact in facts]


def _dialogue(rng: random.Random, facts: Sequence[Question], context: str) -> str:
    turns = []
    for number, fact in enumerate(facts):
        question = rng.choice(fact.wordings)
        asked = f"{context}\n\n{question}" if context and number == 0 else question
        turns.append(f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n\0{fact.answer}<|im_end|>\0\n")
    return "".join(turns)


def _fresh(rng: random.Random, facts: int) -> list[Question]:
    while (found := subject(rng, rng.random() < 0.5, facts))[0].title in _TAKEN:
        pass
    return found


def _reading(rng: random.Random, subjects: int) -> str:
    """A text about fresh subjects and four questions about it; \\0 stands around what is learned."""
    passages = [_fresh(rng, 4 if subjects == 1 else rng.randint(2, 4)) for _ in range(subjects)]
    facts = [fact for passage in passages for fact in passage]
    context = " ".join(fact.sentence for fact in facts)
    if rng.random() < 0.4:
        context = f"{passages[0][0].title}\n\n{context}"
    return _dialogue(rng, rng.sample(facts, 4), context)


def corpus(seed: int) -> Generator[str, bool | None, None]:
    """Pre-training texts without end. Send True for a reading exercise of the easiest kind."""
    rng = random.Random(seed)
    easy: bool | None = False
    while True:
        kind = rng.random()
        if easy or kind > 0.65:
            text = _reading(rng, 1)
        elif kind > 0.55:
            text = _reading(rng, 2)
        elif kind > 0.05:
            text = _dialogue(rng, rng.sample(known_questions(), 6), "")
        else:
            facts = rng.choice(KNOWN)
            text = f"\0{facts[0].title}\n\n{' '.join(fact.sentence for fact in rng.sample(facts, len(facts)))}<|im_end|>\0"
        easy = yield text


def build_tokenizer() -> Any:
    """A byte-level BPE tokenizer trained on the world's texts, with the ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = corpus(RECIPE.seed + 1)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=RECIPE.vocabulary, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    segments = (segment for _ in range(2000) for segment in re.split(r"<\|im_\w+\|>|\0", next(texts)) if segment)
    tokenizer.train_from_iterator((f" {segment.lstrip(' ')}" for segment in segments), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=special[1], additional_special_tokens=special[:1], pad_token=special[1]
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def _encode(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Tokens and labels; -100 where nothing is learned."""
    tokens: list[int] = []
    labels: list[int] = []
    for number, part in enumerate(text.split("\0")):
        found = tokenizer(part, add_special_tokens=False)["input_ids"] if part else []
        tokens += found
        labels += found if number % 2 else [-100] * len(found)
    return tokens, labels


def _batch(rows: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Right-padded tokens and labels."""
    width = max(len(tokens) for tokens, _ in rows)
    tokens = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens, _ in rows])
    return tokens, torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in rows])


def _new_model(tokenizer: Any) -> Any:
    """A LlamaForCausalLM whose attention copies from the start: each head's output matrix is the transpose of its value matrix. With
    unrelated ones, the loss stays for a long while where the kind of answer is known but not which one stands in the text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    r = RECIPE
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=r.width, intermediate_size=r.feed_forward, num_hidden_layers=r.layers, num_attention_heads=r.heads,
        num_key_value_heads=r.kv_heads, max_position_embeddings=r.context, tie_word_embeddings=True, rms_norm_eps=1e-5,
        initializer_range=r.initial, eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(r.seed)
        model = LlamaForCausalLM(config)
        for layer in model.model.layers:
            value = layer.self_attn.v_proj.weight.normal_(0, r.width**-0.5).view(r.kv_heads, -1, r.width)
            layer.self_attn.o_proj.weight.copy_(value.repeat_interleave(r.heads // r.kv_heads, 0).reshape(-1, r.width).T)
    return model


class _Muon:
    """Orthogonalised momentum for the matrices (Jordan et al., 2024): reading is learned in a third of the steps AdamW takes.
    torch.optim.Muon computes in bfloat16, which most processors emulate."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.groups: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for parameter in parameters:
            self.groups.setdefault(parameter.shape, []).append((parameter, torch.zeros_like(parameter)))

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for (rows, columns), members in self.groups.items():
            updates = []
            for parameter, momentum in members:
                assert parameter.grad is not None
                updates.append(parameter.grad + 0.95 * momentum.mul_(0.95).add_(parameter.grad))
            x = torch.stack(updates)
            x = x.mT if rows > columns else x
            x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):
                a = x @ x.mT
                x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
            x = x.mT if rows > columns else x
            for (parameter, _), update in zip(members, x, strict=True):
                parameter.mul_(1 - 0.05 * rate).sub_(update, alpha=rate * max(1.0, rows / columns) ** 0.5)


def pretrain(tokenizer: Any, log: Callable[[str], None] = lambda line: None) -> Any:
    """The model, trained from scratch: first reading only, then closed-book questions and texts too."""
    r, model = RECIPE, _new_model(tokenizer)
    matrices = [p for name, p in model.named_parameters() if name.endswith("_proj.weight")]
    others = [p for name, p in model.named_parameters() if not name.endswith("_proj.weight")]
    adam, muon = torch.optim.AdamW(others, lr=r.embedding_rate, betas=(0.9, 0.98), weight_decay=0.0), _Muon(matrices)
    texts = corpus(r.seed + 2)
    next(texts)
    for step in range(r.steps):
        share = min((step + 1) / 20, 1.0) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / r.steps)))
        rows: list[tuple[list[int], list[int]]] = []
        while sum(len(tokens) for tokens, _ in rows) < r.batch_tokens:
            rows.append(_encode(tokenizer, texts.send(step < r.reading_only * r.steps)))
        tokens, labels = _batch(rows)
        hidden, wanted = model.model(tokens, use_cache=False).last_hidden_state[:, :-1], labels[:, 1:]
        loss = F.cross_entropy(model.lm_head(hidden[wanted != -100]), wanted[wanted != -100])
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.param_groups[0]["lr"] = r.embedding_rate * share
        adam.step()
        muon.step(r.matrix_rate * share)
        if step % 40 == 39:
            log(f"step {step + 1} loss {float(loss.detach()):.2f}")
    return model.eval()


def recipe_key() -> str:
    """Changes with this file, the recipe and the libraries that make the weights."""
    import transformers

    facts = json.dumps([asdict(RECIPE), torch.__version__, transformers.__version__], sort_keys=True)
    return hashlib.sha256(facts.encode() + Path(__file__).read_bytes()).hexdigest()[:16]


def tiny_directory(root: Path) -> Path:
    """The model's directory below ``root``, trained once however many processes ask for it."""
    from filelock import FileLock

    target = root / f"tiny-{recipe_key()}"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            scratch = target.with_suffix(".part")
            tokenizer = build_tokenizer()
            pretrain(tokenizer).save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
            scratch.replace(target)
    return target

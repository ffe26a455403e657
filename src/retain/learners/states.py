"""jitrl-full: a store of hidden states of a document and of answers about it, which moves the logits toward what followed those states.

The memory of just-in-time reinforcement learning (JitRL, 2601.18510) holds (state, action, return); a decision's logits become
``z' = z + A / beta``, with the advantages A of the actions in the nearest states. Here a state is the final hidden state before a token and
the action that token. Its return is 1 where a document or an answer about it has the token; the baseline is what the frozen model expects
by itself, its own probability through the head: ``A = 1 - p(token | state)``. What the model would say anyway gets nothing. 1 / beta is
called the strength.

Nearest states vote by a softmax over their cosine similarities, as in kNN language models (1911.00172), with one thing added: a silent
voter at similarity ``SILENT``, which takes the votes when nothing in the store is near.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.adapters import inject
from retain.config import Config
from retain.data.chat import affixes, tokenise
from retain.data.errors import DataError
from retain.data.examples import Example, question_example
from retain.learners.base import Aid, Form, Learned, Lesson, Memory, Passage, Tell
from retain.learners.retrieval import PASS_TOKENS, by_vectors, context_of, dense_vectors, key_of, places_of
from retain.lm.model import LanguageModel
from retain.lm.packing import Packed, targets
from retain.training.loop import TrainingError

STRENGTHS = (0.0, 4.0, 8.0, 16.0, 32.0)  # the one that makes answers likeliest is taken
TEMPERATURE = 0.1  # of the softmax over cosine similarities
SILENT = 0.7
UNJUDGED = 4.0  # where there are no questions to choose it on
JUDGED = 96  # questions that the strength is chosen on
FIRST, LATER = -1, -2  # where a state comes from: before the first or a later token of an answer; from 0 on the number of a passage
_ROWS = 128  # states whose logits exist at once


@dataclass(frozen=True)
class Store:
    """States to be looked among: ``keys`` [N, width] of length 1, as seen from ``centre`` [width], with the ``tokens`` [N] that followed
    and their ``advantages`` [N]."""

    keys: Tensor
    centre: Tensor
    tokens: Tensor
    advantages: Tensor

    @classmethod
    def of(cls, states: Tensor, tokens: Tensor, advantages: Tensor, device: torch.device | str) -> Store:
        """Seen from their mean: hidden states share a large common part that would make all of them alike."""
        states = states.to(device).float()
        centre = states.mean(0)
        return cls(F.normalize(states - centre, dim=-1), centre, tokens.to(device).long(), advantages.to(device).float())

    def similarities(self, hidden: Tensor) -> Tensor:
        """Cosine similarities [B, N] with states [B, width]."""
        return F.normalize(hidden.float() - self.centre, dim=-1) @ self.keys.T


def votes(stores: Sequence[Store], hidden: Tensor, neighbours: int, unseen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What the ``neighbours`` nearest states of all stores say for each of ``hidden`` [B, width]: tokens [B, k] and the advantages [B, k]
    to be added to their logits. ``unseen`` [B, N] bool: stored states that are not to be seen."""
    similar = torch.cat([store.similarities(hidden) for store in stores], 1)
    if unseen is not None:
        similar = similar.masked_fill(unseen, -1.0)
    near, places = similar.topk(min(neighbours, similar.shape[1]), 1)
    weights = torch.exp((near - 1.0) / TEMPERATURE)
    weights = weights / (weights.sum(1, keepdim=True) + math.exp((SILENT - 1.0) / TEMPERATURE))
    return (
        torch.cat([store.tokens for store in stores])[places],
        weights * torch.cat([store.advantages for store in stores])[places],
    )


class StateGuide:
    """Adds to the logits what the nearest stored states say: before the first token of an answer those of first tokens (``first``), later
    those of later tokens and of the document (``later``)."""

    def __init__(self, first: Sequence[Store], later: Sequence[Store], neighbours: int) -> None:
        self.first, self.later, self.neighbours = first, later, neighbours

    def __call__(self, hidden: Tensor, logits: Tensor, last: int | None) -> Tensor:
        """The logits [V] with the advantages added."""
        stores = self.first if last is None else self.later
        if not stores:
            return logits
        tokens, values = votes(stores, hidden[None], self.neighbours)
        return logits.index_add(0, tokens[0], values[0].to(logits.dtype))


class HiddenStates:
    """The learner ``jitrl-full``."""

    name = "jitrl-full"
    form: Form = "document"
    studies = False
    injected = False

    def check(self, model: LanguageModel, config: Config) -> None:
        """It works with every model."""

    def learn(self, model: LanguageModel, lesson: Lesson, config: Config, tell: Tell) -> Learned:
        """One pass over the document and one over its questions with their answers. Tensors: ``states`` [N, width] float16, ``tokens`` [N]
        int32, ``advantages`` [N] float16, ``source`` [N] int32 (the number of the passage, ``FIRST`` or ``LATER``); with ``jitrl.dense``
        ``vectors`` [P, width] float16.

        The strength is ``states.strength``, or the one of ``STRENGTHS`` by which answers are likeliest when all that was stored for the
        question itself is hidden. Raises TrainingError when there is no passage, or when the strength is 0 and no passages are to be in
        the prompt either."""
        started = time.perf_counter()
        title = lesson.document.title or lesson.document.id
        if not lesson.passages:
            raise TrainingError(f"{title} gives no passage to read: it has no text")
        read = read_lesson(model, lesson, config.states.questions, tell)
        advantages = 1.0 - _expected(model, read.states, read.tokens)
        losses = losses_by_strength(model, read, advantages, config.states.neighbours)
        strength = config.states.strength
        if strength is None:
            strength = min(losses, key=lambda value: losses[value]) if losses else UNJUDGED
        if strength == 0.0 and not config.states.context:
            raise TrainingError(f"the hidden states of {title} make no answer about it likelier: nothing was learned")
        tensors = {
            "states": read.states, "tokens": read.tokens.int(), "advantages": advantages.half(), "source": read.source.int(),
        } | dense_vectors(model, lesson.passages, config)  # fmt: skip
        facts = {
            "document": lesson.document.id, "title": lesson.document.title, "passages": [key_of(passage) for passage in lesson.passages],
            "strength": strength, "losses": {f"{value:g}": loss for value, loss in losses.items()},
        }  # fmt: skip
        cost: dict[str, float] = {
            "training_seconds": time.perf_counter() - started, "tokens": read.passed, "states": len(read.tokens),
            "bytes": sum(tensor.nbytes for tensor in tensors.values()), "strength": strength,
        }  # fmt: skip
        if losses:
            cost |= {"first_loss": losses[0.0], "last_loss": losses.get(strength, losses[0.0])}
        return Learned(Memory(tensors, facts), cost)

    def aid(self, model: LanguageModel, question: str, memories: Sequence[Memory], passages: Sequence[Passage], config: Config) -> Aid:
        """The guide by the states of these documents, of a long one those of the ``states.passages`` best passages; and with
        ``states.context`` the passages that :class:`retain.learners.jitrl.Passages` would put into the prompt."""
        ranked = by_vectors(model, question, memories, passages) if config.jitrl.dense else list(passages)
        context = None
        if config.states.context:
            best = ranked[: config.jitrl.passages]
            context, _ = context_of(model, question, best, memories, config.jitrl.context_tokens, config.generate.max_tokens)
        places = places_of(memories)
        first, later = [], []
        for number, memory in enumerate(memories):
            if not memory.facts["strength"]:
                continue
            known = [places[key][1] for key in map(key_of, ranked) if key in places and places[key][0] == number]
            source = memory.tensors["source"]
            wanted = torch.tensor([LATER, *known[: config.states.passages]])
            first += _store(memory, source == FIRST, model.device)
            later += _store(memory, torch.isin(source, wanted.to(source)), model.device)
        return Aid(context, StateGuide(first, later, config.states.neighbours) if first or later else None)

    def without(self, memory: Memory, document: str) -> Memory | None:
        """Nothing: every document has a memory of its own."""
        return None


@dataclass(frozen=True)
class Read:
    """What reading gave: ``states`` [N, width] float16, the ``tokens`` [N] after them, their ``source`` [N], the number of the
    ``question`` [N] or -1, and how many tokens were ``passed`` through the model. All on the CPU."""

    states: Tensor
    tokens: Tensor
    source: Tensor
    question: Tensor
    passed: int


def read_lesson(model: LanguageModel, lesson: Lesson, questions: int, tell: Tell) -> Read:
    """Read the passages, each after the document's title, and answers to at most ``questions`` questions without the passages, with the
    study skill as answers are made."""
    injection = inject([(lesson.skill, 1.0)], model.dtype, model.device) if lesson.skill else None
    texts = [(_text(model, lesson, passage), number, -1) for number, passage in enumerate(lesson.passages)]
    asked = [(example, FIRST, number) for number, example in enumerate(_examples(model, lesson, questions))]
    sequences = texts + asked
    total = sum(len(example) for example, _, _ in sequences)
    states, tokens, source, question = [], [], [], []
    done = 0
    for batch in _batches(sequences):
        packed = Packed.of([example.tokens for example, _, _ in batch], model.device)
        positions, following = targets(packed, [example.supervised for example, _, _ in batch])
        with torch.inference_mode():
            states.append(model.hidden(packed, injection)[positions].half().cpu())
        tokens.append(following.cpu())
        for example, place, number in batch:
            count = example.n_supervised()
            source += [place] * count if place >= 0 else [FIRST] + [LATER] * (count - 1)
            question += [number] * count
        done += packed.total
        tell("reading", done, total, {"tokens": done})
    return Read(torch.cat(states), torch.cat(tokens), torch.tensor(source), torch.tensor(question), done)


def _text(model: LanguageModel, lesson: Lesson, passage: Passage) -> Example:
    """A passage after the document's title; the tokens of the passage are the targets."""
    before = affixes(model.tokenizer)[0] + tokenise(model.tokenizer, f"{lesson.document.title}\n\n", literal=True)[:_ROWS]
    tokens = (before + tokenise(model.tokenizer, passage.text, literal=True))[: model.context]
    return Example(tuple(tokens), tuple(place >= max(1, len(before)) for place in range(len(tokens))))


def _examples(model: LanguageModel, lesson: Lesson, most: int) -> Iterator[Example]:
    """Questions with their answers, each question once, spread over the document when there are too many."""
    pairs = list(dict(lesson.pairs).items())
    for number in range(min(most, len(pairs))):
        question, answer = pairs[number * len(pairs) // min(most, len(pairs))]
        try:
            yield question_example(model.tokenizer, question, answer, max_tokens=model.context)
        except DataError:  # too long for the model
            continue


def _batches(sequences: Sequence[tuple[Example, int, int]]) -> Iterator[list[tuple[Example, int, int]]]:
    rest = list(sequences)
    while rest:
        count = size = 0
        while count < len(rest) and (not count or size + len(rest[count][0]) <= PASS_TOKENS):
            size += len(rest[count][0])
            count += 1
        yield rest[:count]
        rest = rest[count:]


def _expected(model: LanguageModel, states: Tensor, tokens: Tensor) -> Tensor:
    """The probability [N] that the model itself gives the tokens after these states, through its head."""
    with torch.inference_mode():
        parts = [
            torch.softmax(model.logits(block.to(model.device, model.dtype)), -1).gather(1, following[:, None].to(model.device))[:, 0].cpu()
            for block, following in zip(states.split(_ROWS), tokens.split(_ROWS), strict=True)
        ]
    return torch.cat(parts).float()


def losses_by_strength(model: LanguageModel, read: Read, advantages: Tensor, neighbours: int) -> dict[float, float]:
    """Mean loss in nats of the tokens of answers for each of ``STRENGTHS``, each question looking only at what others left in the store;
    empty when there are not two questions. At most ``JUDGED`` of them are asked."""
    asked = read.question.unique()[1:] if bool((read.question < 0).any()) else read.question.unique()
    if len(asked) < 2:
        return {}
    chosen = asked[torch.linspace(0, len(asked) - 1, min(JUDGED, len(asked))).round().long()]
    sums = dict.fromkeys(STRENGTHS, 0.0)
    count = 0
    for stored in (read.source == FIRST, read.source != FIRST):
        store = Store.of(read.states[stored], read.tokens[stored], advantages[stored], model.device)
        own = read.question[stored]
        for places in (stored & torch.isin(read.question, chosen)).nonzero()[:, 0].split(_ROWS):
            hidden = read.states[places].to(model.device, model.dtype)
            mask = (own[None, :] == read.question[places][:, None]).to(model.device)
            tokens, values = votes([store], hidden, neighbours, mask)
            following = read.tokens[places].to(model.device)
            with torch.inference_mode():
                logits = model.logits(hidden)
                for strength in STRENGTHS:
                    raised = logits.scatter_add(1, tokens, strength * values)
                    sums[strength] += float(F.cross_entropy(raised, following, reduction="sum"))
            count += len(places)
    return {strength: total / count for strength, total in sums.items()}


def _store(memory: Memory, wanted: Tensor, device: torch.device | str) -> list[Store]:
    """The wanted states of a memory, their advantages times its strength; nothing when there are none."""
    if not bool(wanted.any()):
        return []
    tensors, strength = memory.tensors, float(memory.facts["strength"])
    return [Store.of(tensors["states"][wanted], tensors["tokens"][wanted], tensors["advantages"][wanted].float() * strength, device)]

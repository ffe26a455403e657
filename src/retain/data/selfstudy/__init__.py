"""Study sets: from a raw document to questions, rewordings, sentences with gaps and passages that a small model can learn it from.

    items = study_items(title, text)                # by rules only
    items = hold_out(items, fraction=0.5, seed=0)   # keep one wording of some facts for judging
    more = write_items(generate, title, text)       # by a language model, filtered

The rules read a sentence in these steps: `blocks` (sentences, pairs, rows), `tagging` (what each word is), `subjects` (pronouns),
`atoms` and `parsing` (simple clauses), `answers` and `gaps` (what can be asked for), `questions` and `rewordings` (how to ask), `leftovers`
(phrases that nothing asks for yet), `structure` (pairs, tables, lists, brackets) and `cloze`.
"""

from .corpus import StudyPassage, StudyQuestion, load_study_corpus
from .items import StudyItem, grounded, hold_out, normalise
from .rules import study_items
from .writer import Generate, write_items, writer_completion, writer_examples, writer_prompt

__all__ = [
    "Generate",
    "StudyItem",
    "StudyPassage",
    "StudyQuestion",
    "grounded",
    "hold_out",
    "load_study_corpus",
    "normalise",
    "study_items",
    "write_items",
    "writer_completion",
    "writer_examples",
    "writer_prompt",
]

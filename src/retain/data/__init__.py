"""Data: files become documents, documents become clean text, chunks and examples."""

from retain.data.chunking import Chunk, chunks
from retain.data.cleanup import CleanReport, Dropped, QualityRules, clean, clean_documents, quality_problem, remove_boilerplate
from retain.data.document import Document, Message, QuestionAnswer
from retain.data.duplicates import Match, NearDuplicateIndex, Signature, containment
from retain.data.errors import DataError, Note
from retain.data.examples import (
    Example,
    dialogue_example,
    dialogue_examples,
    prompt_tokens,
    question_example,
    text_example,
    text_examples,
)
from retain.data.readers import read_path, read_records
from retain.data.sentences import sentences
from retain.data.streams import Passage, Question, load_questions, load_squad

__all__ = [
    "Chunk",
    "CleanReport",
    "DataError",
    "Document",
    "Dropped",
    "Example",
    "Match",
    "Message",
    "NearDuplicateIndex",
    "Note",
    "Passage",
    "QualityRules",
    "Question",
    "QuestionAnswer",
    "Signature",
    "chunks",
    "clean",
    "clean_documents",
    "containment",
    "dialogue_example",
    "dialogue_examples",
    "load_questions",
    "load_squad",
    "prompt_tokens",
    "quality_problem",
    "question_example",
    "read_path",
    "read_records",
    "remove_boilerplate",
    "sentences",
    "text_example",
    "text_examples",
]

"""What is known to be wrong before anything is learned: names that nothing has, settings that do not fit the model, what is missing."""

from __future__ import annotations

from retain.config import Config, ConfigError
from retain.config.settings import place_of
from retain.learners.base import LearnerError
from retain.learners.lora import check_sites
from retain.learners.registry import DEFAULT, check_learner, learner_named
from retain.learners.teacher import TeacherError, check_teacher
from retain.lm.model import LanguageModel
from retain.retention import RetentionError
from retain.retention.registry import check_methods


def check_names(config: Config) -> None:
    """Raise ConfigError, with where the name was set, its key and the nearest one, unless every name in the configuration is known."""
    try:
        key = "learn.learner"
        check_learner(config.learn.learner)
        key = "retention.methods"
        check_methods(config.retention.methods)
    except (LearnerError, RetentionError) as error:
        raise ConfigError(f"{place_of(config, key)}: {key}: {error}") from None


def check_ready(model: LanguageModel, config: Config) -> None:
    """Raise LearnerError, one line, for what would keep every document from being learned: settings that do not fit the model, what the
    learner lacks, a teacher that is not fully described. Nothing is trained, and nobody is asked."""
    name = config.learn.learner
    learner = None if name == DEFAULT else learner_named(name)
    if config.study.writer == "teacher" and (learner is None or learner.studies):
        try:
            check_teacher(config.study.teacher)
        except TeacherError as error:
            raise LearnerError(str(error)) from None
    if learner is None:
        check_sites(model, config)
    else:
        learner.check(model, config)

"""The typed configuration: defaults, YAML files, environment variables and the command line, in that order of precedence.

    defaults < ~/.config/retain/config.yaml (or $RETAIN_CONFIG) < WORKSPACE/config.yaml < RETAIN_SECTION__KEY=value < command line

Unknown keys are errors that name the file and the key, with a suggestion. Every value remembers where it came from.
"""

from retain.config.endpoint import EndpointConfig
from retain.config.errors import ConfigError
from retain.config.files import file_config, load_config, read_file, save, set_value, user_file, workspace_file
from retain.config.schema import (
    AgemConfig,
    Config,
    DerppConfig,
    EwcConfig,
    GateConfig,
    GenerateConfig,
    KlConfig,
    LearnConfig,
    ModelConfig,
    OloraConfig,
    ReplayConfig,
    RetentionConfig,
    RouteConfig,
    StudyConfig,
    TeacherConfig,
)
from retain.config.settings import Setting, describe
from retain.config.values import parse_yaml

__all__ = [
    "AgemConfig",
    "Config",
    "ConfigError",
    "DerppConfig",
    "EndpointConfig",
    "EwcConfig",
    "GateConfig",
    "GenerateConfig",
    "KlConfig",
    "LearnConfig",
    "ModelConfig",
    "OloraConfig",
    "ReplayConfig",
    "RetentionConfig",
    "RouteConfig",
    "Setting",
    "StudyConfig",
    "TeacherConfig",
    "describe",
    "file_config",
    "load_config",
    "parse_yaml",
    "read_file",
    "save",
    "set_value",
    "user_file",
    "workspace_file",
]

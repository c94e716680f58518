"""Settings are read once, validated by name, and never guessed."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from serving.errors import SettingsRefused
from serving.settings import Settings, cgroup_cpus


def test_flags_override_the_environment_and_defaults_fill_the_rest() -> None:
    settings = Settings.from_env({"COPPICE_PORT": "9000", "COPPICE_WORKERS": "3", "HOME": "x"}, port=9100, host=None)
    assert (settings.port, settings.workers, settings.host) == (9100, 3, "127.0.0.1")
    with pytest.raises(ValidationError):
        settings.port = 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("COPPICE_PROT", "9000"),
        ("COPPICE_PORT", "many"),
        ("COPPICE_PORT", "70000"),
        ("COPPICE_WORKERS", "-1"),
        ("COPPICE_HTTP", "fast"),
        ("COPPICE_MAX_BATCH_ROWS", "0"),
        ("COPPICE_KEEP_ALIVE_S", "nan"),
    ],
)
def test_a_wrong_variable_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(SettingsRefused, match=name):
        Settings.from_env({name: value})


def test_there_is_at_least_one_cpu() -> None:
    assert cgroup_cpus() >= 1

import pytest

pytest.register_assert_rewrite("systemd_parts")
from systemd_parts import machine  # noqa: E402, F401 - a fixture

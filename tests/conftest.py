"""What holds for every test: assertions in the shared helpers explain themselves."""

import pytest

pytest.register_assert_rewrite("cases", "oracles", "contracts")

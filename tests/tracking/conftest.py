from __future__ import annotations

from tests.loggers.conftest import empty_database, no_settings_of_the_user, said, uri

__all__ = ["empty_database", "no_settings_of_the_user", "said", "uri"]

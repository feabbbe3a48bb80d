from tests.data.conftest import hostile, shared_images  # noqa: F401 - fixtures

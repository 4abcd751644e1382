"""A package, so that its conftest is not the `conftest` that other folders' tests import."""

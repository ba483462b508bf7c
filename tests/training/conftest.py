"""A fixture of the toy's model for the tests of training."""

import pytest


@pytest.fixture
def model(toy):  # type: ignore[no-untyped-def]
    """The model of a module's fixture `toy`, with its settings and weights as they were."""
    model = toy[2]
    settings = model.settings
    weights = {name: value.clone() for name, value in model.lm.state_dict().items()}
    yield model
    model.settings = settings
    model.lm.load_state_dict(weights)

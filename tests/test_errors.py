"""Sentences of errors that name a remedy."""

from importlib import metadata

from recbole_multdpo.errors import install_extra


def test_an_extra_is_named_by_its_packages(monkeypatch) -> None:
    wanted = ["torch>=2.6", 'gguf>=0.10; extra == "smollm2"', "accelerate>=1.1; extra == 'smollm2'"]
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    assert install_extra("smollm2") == "pip install 'gguf>=0.10' 'accelerate>=1.1'"


def test_a_clone_that_is_not_installed(monkeypatch) -> None:
    def requires(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    assert install_extra("demo") == "pip install '.[demo]'"

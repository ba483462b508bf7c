"""User errors; their messages name the setting or file and the remedy."""


class MultDPOError(Exception):
    """Base of all errors that this package raises on purpose."""


def system_error(error: OSError) -> str:
    """Sentence about an error of the operating system, such as a full disk or denied permission."""
    place = f" {error.filename}" if error.filename is not None else ""
    return (
        f"the system refuses{place}: {error.strerror or error}. Check that the folder may be read "
        "and written by you and that the disk has room."
    )


class ConfigError(MultDPOError, ValueError):
    """A setting is unknown, mistyped, of the wrong type, or impossible together with another."""


class DataError(MultDPOError, ValueError):
    """A data file is missing, malformed, or lacks what the chosen settings need."""


class CheckpointError(MultDPOError, RuntimeError):
    """A checkpoint or cache is absent, truncated, or belongs to other settings."""


class ProcessError(MultDPOError, RuntimeError):
    """Another process of the run has ended, so that this one cannot continue."""


class TrainingError(MultDPOError, RuntimeError):
    """Training cannot continue, for example because the loss is not finite."""

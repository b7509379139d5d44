"""The folder a profile lies in: finished statistics, and the state of a run that is not finished.

`activation_{i}.pt` are for PowerInfer, `activation.safetensors` holds the same counts and all that is known about them,
`activation.state` (the same format) is what an unfinished run has counted so far. Order of writing: the `.pt` files,
then `activation.safetensors`, then the state goes. So a folder with `activation.safetensors` whose counts agree with
the `.pt` files is finished, whatever ended the process that wrote it; and while a new run is under way the statistics
of an older one stay whole.
"""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from pathlib import Path

from powerinfer_py.errors import FileFormatError, OptionError, PowerInferError, printable
from powerinfer_py.output_files import locked_folder, remove, require_writable, write_bytes
from powerinfer_py.placement.statistics.layer_files import layer_files
from powerinfer_py.placement.statistics.profile import (
    PROFILE_NAME,
    STATE_NAME,
    ActivationProfile,
    decode_profile,
    encode_profile,
    read_profile,
)


class ProfileFolder:
    """A folder to be written. overwrite: statistics of another run may be replaced, once the new ones are complete."""

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        self._overwrite = overwrite

    def locked(self) -> AbstractContextManager[None]:
        """Makes the folder and keeps other processes from profiling into it. Raises OptionError where one does."""
        return locked_folder(self.path, "profiling into")

    def finished(self, run: str) -> ActivationProfile | None:
        """The statistics of this very run, or None where it has to run yet.

        Raises OptionError where the folder has statistics of another run that may not be replaced, FileFormatError
        where it has some that are damaged.
        """
        state = self.state(run)
        if (self.path / PROFILE_NAME).is_file():
            profile = self._finished_file(run, has_state=state is not None)
            if profile is not None:
                # The process was ended after its last file and before this.
                remove(self.path / STATE_NAME)
            return profile
        if layer_files(self.path) and state is None and not self._overwrite:
            raise self._refusal("activation_{i}.pt files of another origin")
        return None

    def state(self, run: str) -> ActivationProfile | None:
        """What an unfinished run of this name has counted. Raises as `finished`."""
        path = self.path / STATE_NAME
        if not path.is_file():
            return None
        try:
            state = decode_profile(path)
        except FileFormatError as error:
            if self._overwrite:
                return None
            raise FileFormatError(f"{error}: the run cannot be resumed; --overwrite begins it anew") from None
        if state.run == run:
            return state
        if self._overwrite:
            return None
        raise self._refusal("an unfinished run over other text, with other settings or of another model")

    def require_writable(self) -> None:
        """Raises PowerInferError where nothing can be saved."""
        require_writable(self.path / STATE_NAME)

    def save_state(self, profile: ActivationProfile) -> None:
        """Keeps what was counted so far. Raises PowerInferError; the state saved before then stays."""
        write_bytes(self.path / STATE_NAME, encode_profile(profile))

    def finish(self, profile: ActivationProfile) -> None:
        """Writes the statistics, in the order that the module states. Raises PowerInferError."""
        import torch

        for layer, path in layer_files(self.path).items():
            if layer >= profile.model.n_layer:
                remove(path)
        for layer, fired in enumerate(profile.counts.fired):
            buffer = io.BytesIO()
            torch.save(torch.from_numpy(fired.copy()), buffer)
            write_bytes(self.path / f"activation_{layer}.pt", buffer.getvalue())
        write_bytes(self.path / PROFILE_NAME, encode_profile(profile))
        remove(self.path / STATE_NAME)

    def _finished_file(self, run: str, *, has_state: bool) -> ActivationProfile | None:
        """The statistics in the folder if they are this run's; None where it may replace them."""
        try:
            profile = read_profile(self.path)
        except PowerInferError as error:
            # With a state the process was ended between the layers' files and the last one.
            if has_state or self._overwrite:
                return None
            raise type(error)(f"{error}; --overwrite replaces what is there") from None
        if profile.run == run:
            return profile
        if self._overwrite or has_state:
            return None
        raise self._refusal("statistics of another run (other text, settings or model)")

    def _refusal(self, what: str) -> OptionError:
        return OptionError(f"{self._name} holds {what}: name another folder with -o, or give --overwrite")

    @property
    def _name(self) -> str:
        return printable(str(self.path))

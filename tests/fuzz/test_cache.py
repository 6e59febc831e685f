"""The cache of finished pieces: whatever becomes of its files, no other data comes back."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryodrgn_metric.cache import Stage
from fuzz import pickles
from fuzz.damage import damaged
from fuzz.harness import fuzz, judge

KEY, OTHER_KEY = "0" * 64, "1" * 64


class Cached:
    """A stage of three pieces and a seal, written anew for every case."""

    def __init__(self, folder):
        self.folder = folder / "stage"
        self.outputs = [folder / "a.bin", folder / "b.bin"]
        self.pieces = [np.arange(4.0) + number for number in range(3)]
        stage = Stage(self.folder, KEY)
        for number, piece in enumerate(self.pieces):
            stage.save(number, piece)
        for path in self.outputs:
            path.write_bytes(path.name.encode())
        stage.seal(self.outputs)
        self.files = {path.name: path.read_bytes() for path in self.folder.iterdir()}

    def read(self, files, outputs=True):
        """Every piece that comes back must be the one that was saved, and so must the outputs."""
        for path in self.folder.iterdir():
            path.unlink()
        for name, data in files.items():
            (self.folder / name).write_bytes(data)
        judge("our cache", self.folder, self._everything, self._require_right(files, outputs))

    def _everything(self):
        """All that a run would read: the pieces, by this key and by another, and the seal."""
        here, elsewhere = Stage(self.folder, KEY), Stage(self.folder, OTHER_KEY)
        pieces = [here.load(number) for number in range(len(self.pieces))]
        others = [elsewhere.load(number) for number in range(len(self.pieces))]
        return pieces, others, here.is_sealed(self.outputs)

    def _require_right(self, files, outputs):
        intact = {name for name, data in files.items() if self.files.get(name) == data}

        def there(stem):
            return any(name.startswith(f"{stem}-") for name in intact)

        def check(read):
            pieces, others, sealed = read
            assert others == [None] * len(others)
            assert sealed == (outputs and there("files"))
            for number, (found, saved) in enumerate(zip(pieces, self.pieces, strict=True)):
                assert (found is not None) == there(f"{number:05d}")
                assert found is None or pickles.same(found, saved)

        return check


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    return Cached(tmp_path_factory.mktemp("cache"))


def npy(value):
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=True)
    return buffer.getvalue()


contents = st.one_of(
    pickles.arrays().map(npy),
    pickles.hostile(),
    pickles.arrays(types=pickles.number_types)
    .map(npy)
    .flatmap(lambda data: damaged(st.just(data))),
    st.dictionaries(st.sampled_from(["a.bin", "b.bin"]), st.text())
    .map(json.dumps)
    .map(str.encode),
    st.just(b""),
)


what_happens = st.sampled_from(["damage", "swap", "copy", "rename", "replace", "remove"])


@fuzz(1)
@given(choice=st.data())
def test_other_files(cached, choice):
    files = dict(cached.files)
    names = st.sampled_from(sorted(cached.files))
    for name in choice.draw(st.lists(names, min_size=1, max_size=3)):
        what = choice.draw(
            st.sampled_from(["damage", "swap", "copy", "rename", "replace", "remove"])
        )
        data, other = cached.files[name], choice.draw(names)
        if what == "damage":
            files[name] = choice.draw(damaged(st.just(data)))
        elif what == "swap":
            files[name], files[other] = cached.files[other], data
        elif what == "copy":
            files[other] = data
        elif what == "replace":
            files[name] = choice.draw(contents)
        else:
            files.pop(name, None)
            if what == "rename":
                files[
                    name[:5] + choice.draw(st.sampled_from(["-x", "", "-" + "0" * 32])) + name[-5:]
                ] = data
    cached.read(files)


@fuzz(0.3)
@given(choice=st.data())
def test_other_outputs(cached, choice):
    good = [path.read_bytes() for path in cached.outputs]
    path = choice.draw(st.sampled_from(cached.outputs))
    changed = choice.draw(damaged(st.just(path.read_bytes())))
    same = changed == path.read_bytes()
    path.write_bytes(changed)
    try:
        cached.read(cached.files, outputs=same)
    finally:
        for output, data in zip(cached.outputs, good, strict=True):
            output.write_bytes(data)

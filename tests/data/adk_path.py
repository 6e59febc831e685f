"""Makes adk_path.npz: adenylate kinase on its way from closed (1AKE) to open (4AKE).

Every fourth frame of the DIMS trajectory in the data of MDAnalysisTests (Beckstein et al. 2009,
doi:10.1016/j.jmb.2009.09.009; GPL and LGPL), without hydrogens, in hundredths of Å. Once more:

    pip install --no-deps MDAnalysisTests && python tests/data/adk_path.py tests/data/adk_path.npz
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from scipy.io import FortranFile

STRIDE = 4
FRAMES = 98
ELECTRONS = {"C": 6, "N": 7, "O": 8, "S": 16}


def package_data():
    """The folder of MDAnalysisTests' files, without importing it; None where it is missing."""
    spec = find_spec("MDAnalysisTests")
    return None if spec is None else Path(spec.submodule_search_locations[0]) / "data"


def arrays(folder):
    """What adk_path.npz holds."""
    columns = [
        (line[12:16].strip(), line[17:21].strip(), int(line[22:26]))
        for line in (folder / "adk_closed.pdb").read_text().splitlines()
        if line.startswith("ATOM")
    ]
    names, residues, numbers = map(np.array, zip(*columns, strict=True))
    elements = np.array([name.lstrip("0123456789")[0] for name in names])
    heavy = elements != "H"
    steps = frames(folder / "adk_dims.dcd")[::STRIDE, heavy]
    return {
        "coordinates": np.round(100 * steps).astype(np.int16),
        "names": names[heavy],
        "residues": residues[heavy],
        "numbers": numbers[heavy].astype(np.int16),
        "electrons": np.array([ELECTRONS[one] for one in elements[heavy]], np.uint8),
    }


def frames(path):
    """A CHARMM trajectory: Fortran records of a header, a title, the number of atoms, x, y, z."""
    with FortranFile(path) as file:
        file.read_record("u1")
        file.read_record("u1")
        file.read_ints("i4")
        steps = [[file.read_reals("f4") for _ in range(3)] for _ in range(FRAMES)]
    return np.array(steps, np.float64).swapaxes(1, 2)


if __name__ == "__main__":
    np.savez_compressed(sys.argv[1], **arrays(package_data()))

"""The order of imports, read from the sources: nothing is imported upwards, nothing in a circle.

The order is the package's design, so a new file has no place until it is given one here.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import cryodrgn_metric

PACKAGE = "cryodrgn_metric"
ROOT = Path(__file__).parents[1]
BOOT = ROOT / PACKAGE / "boot"

# One line per level, lowest first; what stands right of a `<` may import what stands left of it.
ORDER = """
    errors
    config, artifacts, devices, path_folder, runlog, safe_files, so3, termination, threads
    batch, cache, folder_lock, metric_folder, se3, training_inputs
    workdir, fidelity, reference_spaces
    host_models
    model_loading, perceptron, fourier_points
    landmark_candidates, sketches
    decoder, landmarks, clusters, view
    volumes, networks, targets
    free_points, landmark_training, local_volume, principal_axes
    flow
    atomic_model, bead_density, elastic_network, superposition
    distances
    flexible_fitting < model_placement
    distance_net, metric_map
    distance_ensemble
    acquisition, error_bars
    contrast, density, hidden_rotation, reach, reference_maps
    dimension_checks, embedded_landmarks
    dimension_estimate
    dimension, invertibility, local_geometry, paths, projections
    report
    overlay
    run
    fitted_models, landmark_features, left_out < model_fits
    measurement
    learning, exploration, frame
    active_sampling
    path_volumes, pair_pictures
    motion, straight_motion
    reporting
    pipeline
    demo, options < command < script
    plugin
"""
WITHIN = {
    "so3": "conventions < rotations, harmonics, pairs < wigner, half_sphere < expansion < turning"
    " < correlation, refine < search",
    "distances": "base < all_pairs, slices, solvent, atoms < rotation < rigid, transport"
    " < streaming, api < choice",
    "se3": "candidates, motions < points < refine < search",
    "safe_files": "files < pickles, yaml_files < checkpoints",
    "report": "drawing, wording < content < results, scatter < landscape_section, uncertainty,"
    " landmark_volumes < fidelity_section, dimension_section, rotation_section, motion_section,"
    " clusters_section, comparison_section, verdict < gallery < page, inline, execution < notebook"
    " < writing",
    "demo": "molecule < score, simulate < train, truth < run",
}


def ranks(text: str) -> dict[str, int]:
    """The position of every name in `a < b, c < d`; a new line counts as a `<`."""
    steps = re.split(r"[<\n]", text.strip())
    return {name.strip(): rank for rank, names in enumerate(steps) for name in names.split(",")}


LEVELS = ranks(ORDER)
RANKS = {folder: ranks(text) for folder, text in WITHIN.items()}
SOURCES = sorted(
    path for path in (ROOT / PACKAGE).rglob("*.py") if BOOT not in path.parents
)  # the boot module is outside the package once it is installed


def name_of(path: Path) -> str:
    """`so3.wigner`, `so3` for its __init__, the empty name for the package's own."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


TREES = {name_of(path): ast.parse(path.read_text(), str(path)) for path in SOURCES}


def absolute_imports(tree: ast.AST) -> Iterator[str]:
    """The dotted name of every import at any depth; `from a import b` gives `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(tree: ast.AST) -> set[str]:
    """Our own modules among the imports, as names of TREES."""
    found = set()
    for imported in absolute_imports(tree):
        parts = imported.split(".")
        if parts[0] == PACKAGE and imported != f"{PACKAGE}.__version__":
            while ".".join(parts[1:]) not in TREES:
                parts.pop()  # a function or class: its module
            found.add(".".join(parts[1:]))
    return found


def place(name: str) -> tuple[int, float]:
    """The level of a module and its rank within its folder; an __init__ tops its folder."""
    folder, _, file = name.partition(".")
    if not file:
        return LEVELS[folder], float("inf")
    return LEVELS[folder], RANKS[folder][file]


MODULES = sorted(name for name in TREES if name)  # without __init__.py, which is lazy


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_a_place(name):
    folder, _, file = name.partition(".")
    assert folder in LEVELS, f"give {name} a place in ORDER"
    assert not file or file in RANKS[folder], f"and {name} one in WITHIN"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name):
    for other in own_imports(TREES[name]) - {name}:
        assert other, f"{name} imports a module that isn't there, or the lazy {PACKAGE}"
        assert place(other) < place(name), f"{name} -> {other}"


def test_no_import_comes_back():
    """Also through the __init__ of a folder, which runs before any file in it."""
    graph = {}
    for name in MODULES:
        imported = own_imports(TREES[name])
        folders = {other.rpartition(".")[0] for other in imported if "." in other}
        graph[name] = (imported | folders) - {name}
    circle: list[str] = []
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = error.args[1]
    assert not circle, " -> ".join(circle)


def test_the_package_itself_imports_nothing_of_ours_at_run_time():
    tree = TREES[""]
    lazy = [node for node in tree.body if isinstance(node, ast.If)]
    assert [ast.unparse(node.test) for node in lazy] == ["TYPE_CHECKING"]
    eager = {i for node in tree.body if node not in lazy for i in absolute_imports(node)}
    assert {name.split(".")[0] for name in eager} == {"__future__", "importlib", "typing"}


def test_only_model_loading_knows_cryodrgns_models():
    for name, tree in TREES.items():
        models = [i for i in absolute_imports(tree) if i.startswith("cryodrgn.models")]
        assert not models or name == "model_loading", f"{name} imports {models}"


def test_only_the_plugin_touches_the_hosts_command_line():
    for path in SOURCES:
        if path.name != "plugin.py":
            assert "command_line" not in path.read_text(), path
    assert 'HOST = "cryodrgn.command_line"' in (BOOT / "_cryodrgn_metric_boot.py").read_text()


def strings(node: ast.expr) -> list[str]:
    return [ast.literal_eval(element) for element in node.elts]


def top_level_names(tree: ast.Module) -> set[str]:
    names = set()
    guarded = [node for guard in tree.body if isinstance(guard, ast.If) for node in guard.body]
    for node in [*tree.body, *guarded]:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


@pytest.mark.parametrize("name", sorted(TREES))
def test_all_is_true(name):
    """`__all__` is a module's table of contents: there, sorted, without what isn't."""
    tree = TREES[name]
    if len(tree.body) == 1 and isinstance(tree.body[0], ast.Expr):
        return  # a folder's docstring
    declared = [
        strings(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    assert len(declared) == 1, f"{name or PACKAGE} has no __all__"
    assert len(set(declared[0])) == len(declared[0])
    files = {other.rpartition(".")[2] for other in TREES if other.rpartition(".")[0] == name}
    assert set(declared[0]) <= top_level_names(tree) | files


@pytest.mark.parametrize("name", sorted(TREES))
def test_every_module_says_what_it_is(name):
    assert ast.get_docstring(TREES[name])


@pytest.mark.parametrize("name", cryodrgn_metric.__all__)
def test_every_public_name_can_be_used(name):
    assert getattr(cryodrgn_metric, name) is not None
    assert name in dir(cryodrgn_metric)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cryodrgn_metric.nothing  # noqa: B018


def test_lazy_names_are_the_ones_type_checkers_see():
    tree = ast.parse((ROOT / PACKAGE / "__init__.py").read_text())
    seen = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith(f"{PACKAGE}.")
        for alias in node.names
    }
    lazy = {f"{PACKAGE}.{home}.{name}" for name, home in cryodrgn_metric._MODULE_OF.items()}
    assert seen == lazy
    assert {name.rpartition(".")[2] for name in lazy} | {"__version__"} == set(
        cryodrgn_metric.__all__
    )


def test_version_is_the_changelogs_latest():
    text = (ROOT / "CHANGELOG.md").read_text()
    latest = re.search(r"^## \[(\d[^\]]*)\] - \d{4}-\d{2}-\d{2}$", text, re.MULTILINE)
    assert latest is not None, "no heading like `## [0.1.0] - 2026-11-22`"
    assert latest[1] == cryodrgn_metric.__version__

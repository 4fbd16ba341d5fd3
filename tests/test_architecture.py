"""The rules of the house, read from the imports of every module of the package."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sae_lens_sparsemax

NAME = "sae_lens_sparsemax"
PACKAGE = Path(sae_lens_sparsemax.__file__).parent

# A room may import those of the lines below its own, and no other.
FLOORS = [
    {"cli"},
    {"hub", "figures"},
    {"explore", "compare"},
    {"training"},
    {"evaluation"},
    {"activations"},
    {"models"},
    {"data"},
    {"display", "processes"},
    {"settings", "files", "assets"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# The method itself: `sae` may be asked for names, configs, presets and its one mistake; only publishing knows its
# classes.
METHOD = {"attention": {"attention"}, "sae": {"sae", "attention", "files"}}
FROM_SAE = {f"{NAME}.sae.config", f"{NAME}.sae.presets", f"{NAME}.sae.divergence"}
LIBRARIES = {
    "attention": {"torch", "triton"},
    "sae": {"torch", "sae_lens", "simple_parsing", "typing_extensions"},
}
# What the package itself re-exports, and its version.
FACE = "__init__"


def source_files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = (NAME, *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in source_files()}


def imports(module: str) -> Iterator[str]:
    """Full names of what a module imports, at its top or later; a module of ours rather than a name in it."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in TREES else node.module


def ours(module: str) -> set[str]:
    found = {name for name in imports(module) if name.split(".")[0] == NAME}
    assert found <= TREES.keys(), f"{module} imports {sorted(found - TREES.keys())}, which is not there"
    return found - {module}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else FACE


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of more than one node that reach each other."""

    def reached(start: str) -> set[str]:
        seen, rest = set(), [start]
        while rest:
            for target in arrows[rest.pop()] - seen:
                seen.add(target)
                rest.append(target)
        return seen

    reach = {node: reached(node) for node in arrows}
    groups = {frozenset(other for other in arrows if other in reach[node] and node in reach[other]) for node in arrows}
    return sorted(sorted(group) for group in groups if len(group) > 1)


ARROWS = {module: ours(module) for module in TREES}


def test_at_most_seventeen_rooms_and_none_without_a_place():
    rooms = {room(module) for module in TREES} - {FACE, "__main__"}
    assert len(rooms) <= 17
    assert rooms <= FLOOR.keys() | METHOD.keys()


def test_rooms_import_only_what_is_below_them():
    upward = [
        f"{module} imports {target}"
        for module, targets in ARROWS.items()
        for target in sorted(targets)
        if (floor := FLOOR.get(room(module))) is not None
        and room(target) in FLOOR
        and room(target) != room(module)
        and FLOOR[room(target)] <= floor
    ]
    assert not upward, "\n".join(upward)


def test_the_laboratory_asks_the_method_for_names_configs_and_presets_alone():
    knowing = [
        f"{module} imports {target}"
        for module, targets in ARROWS.items()
        for target in sorted(targets)
        if room(module) in FLOOR.keys() - {"hub"} and room(target) in METHOD and target not in FROM_SAE
    ]
    assert not knowing, "\n".join(knowing)


@pytest.mark.parametrize("name", METHOD)
def test_the_mathematics_knows_no_sae_and_the_sae_no_data(name):
    allowed = LIBRARIES[name] | set(sys.stdlib_module_names)
    for module in TREES:
        if room(module) == name:
            assert {room(target) for target in ARROWS[module]} <= METHOD[name], module
            assert {found.split(".")[0] for found in imports(module)} - {NAME} <= allowed, module


def test_the_package_itself_imports_the_method_and_is_asked_for_its_version_alone():
    assert {room(target) for target in ARROWS[NAME]} <= METHOD.keys() | {"models", "explore"}
    asking = {
        (module, alias.name)
        for module in TREES
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.ImportFrom) and node.module == NAME
        for alias in node.names
        if f"{NAME}.{alias.name}" not in TREES
    }
    assert {name for _, name in asking} <= {"__version__"}, asking


def test_there_is_no_circle_of_rooms_nor_of_modules():
    assert circles(ARROWS | {NAME: set()}) == []
    rooms: dict[str, set[str]] = {}
    for module, targets in ARROWS.items():
        rooms.setdefault(room(module), set()).update(room(target) for target in targets if module != NAME)
    assert circles({name: targets - {name} for name, targets in rooms.items()}) == []


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "e"}, "e": set()}) == [["a", "b", "c"]]


def test_nothing_imports_the_command_line():
    users = {module for module, targets in ARROWS.items() if any(room(target) == "cli" for target in targets)}
    assert {room(module) for module in users} <= {"cli", "__main__"}


def test_production_mocks_nothing():
    assert [module for module in TREES if any(name.startswith("unittest") for name in imports(module))] == []


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_a_file_holds_one_idea_and_says_which(path):
    assert ast.get_docstring(TREES[module_name(path)]), "it has no docstring"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 320

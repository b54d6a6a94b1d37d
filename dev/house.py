"""The import graph of the package: `python dev/house.py` counts it, `--dot` draws it (pipe it into `dot -Tsvg`).

A room is a package, or a module that lies loose in `fallline`, `fallline.bench` or `fallline.papers`. There are as many
floors as the longest chain has rooms in which each imports the next.
"""

import functools
import sys

import grimp

LOOSE = ("fallline", "fallline.bench", "fallline.papers")
"""The packages whose own modules are rooms by themselves."""

Arrows = dict[tuple[str, str], list[str]]
"""For two rooms of which the first imports the second: the imports, as `module -> module`."""


def rooms(graph: grimp.ImportGraph) -> dict[str, str]:
    """The room of each module."""
    inside = {module for module in graph.modules if not graph.is_module_squashed(module)}  # not torch and the like
    packages = {module for module in inside if graph.find_children(module)}
    found = {}
    for module in graph.modules:
        package = module.rpartition(".")[0]
        found[module] = module if module in packages or package in LOOSE or not package else package
    return found


def arrows(graph: grimp.ImportGraph) -> Arrows:
    """Which room imports which, and by which imports."""
    room, found = rooms(graph), Arrows()
    for module in sorted(graph.modules):
        for imported in sorted(graph.find_modules_directly_imported_by(module)):
            if room[module] != room[imported]:
                found.setdefault((room[module], room[imported]), []).append(f"{module} -> {imported}")
    return found


def floors(pairs: set[tuple[str, str]]) -> int:
    """The length of the longest chain; rooms that import each other in a circle share a floor."""
    reach = {room: {low for high, low in pairs if high == room} for pair in pairs for room in pair}
    for through in reach:
        for room in reach:
            if through in reach[room]:
                reach[room] = reach[room] | reach[through]

    @functools.cache
    def depth(room: str) -> int:
        return 1 + max((depth(low) for low in reach[room] if room not in reach[low]), default=0)

    return max(map(depth, reach), default=1)


def dot(pairs: set[tuple[str, str]]) -> str:
    """The graph in the language of Graphviz."""
    lines = [f'  "{high}" -> "{low}";' for high, low in sorted(pairs)]
    return "\n".join(["digraph house {", "  node [shape=box];", *lines, "}"])


if __name__ == "__main__":
    built = grimp.build_graph("fallline", cache_dir=None)
    between = set(arrows(built))
    if sys.argv[1:] == ["--dot"]:
        print(dot(between))
    else:
        print(f"modules: {len(built.modules)}, imports between them: {built.count_imports()}")
        print(f"rooms: {len(set(rooms(built).values()))}, floors: {floors(between)}, arrows: {len(between)}")
        both = sorted({tuple(sorted(pair)) for pair in between if pair[::-1] in between})
        print("two that import each other:", ", ".join(" and ".join(pair) for pair in both) or "none")

"""For a `type='X'` in a config that no registry knows: the names that would work in its place."""

import difflib
from collections import defaultdict

from mmengine import registry as mmengine_registry
from mmengine.registry import DefaultScope, Registry


def asked_registry(traceback):
    """The registry in which a type was looked up without success, by the traceback of the error; None if there is none in it."""
    found = None
    while traceback is not None:
        names = traceback.tb_frame.f_locals
        found = next((names[name] for name in ('registry', 'self') if isinstance(names.get(name), Registry)), found)
        traceback = traceback.tb_next
    return found


def types_instead(asked, registry):
    """The end of an error message: names that work where another one was asked for.

    Args:
        asked (str): The unknown name, with or without a scope.
        registry (Registry | None): Where it was looked up; None: somewhere.

    Returns:
        str: The same name in other libraries if it is there, else the nearest names; such as "; did you mean 'mmcae.CAEViT'?", or ''.
    """
    roots = [root for root in vars(mmengine_registry).values() if isinstance(root, Registry)]
    others = []
    if registry is not None:
        while registry.parent is not None:
            registry = registry.parent
        roots, others = [registry], [root for root in roots if root is not registry]
    name = asked.rpartition('.')[2]
    known = names_by_class(roots)
    if name not in known:
        for root in others:
            if name in names_by_class([root]):
                return f', and asks for a {registry.name} there; {name} is a {root.name}'
    matches = [name] if name in known else difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    instead = [found for match in matches for found in sorted(known[match]) if found != asked][:3]
    return f'; did you mean {" or ".join(map(repr, instead))}?' if instead else ''


def names_by_class(roots):
    """All names that work for things of some kinds, by their names without scope."""
    names = defaultdict(set)
    for root in roots:
        for name in working_names(root):
            names[name.rpartition('.')[2]].add(name)
    return names


def working_names(root):
    """All names by which a config of the current scope can ask for something of a kind, out of the libraries loaded so far.

    Those of mmengine and of the current scope need no scope before them.
    """
    current = DefaultScope.get_current_instance()
    names = set(root.module_dict)
    for scope, registry in root.children.items():
        if scope == 'mmcae':
            registry.import_from_location()
        names.update(f'{scope}.{name}' for name in registry.module_dict)
        if current is not None and scope == current.scope_name:
            names.update(registry.module_dict)
    return names

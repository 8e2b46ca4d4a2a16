"""What a person probably meant by a setting or an option that does not exist."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cgrseg.config import words
from cgrseg.config.other_tools import meaning_of, normalized
from cgrseg.errors import ConfigError

# Last parts that say little without their section: `optimizer.name` is not `model.name`.
_VAGUE = frozenset(
    {"name", "root", "images", "labels", "check", "merge", "rename", "drop", "scale", "flip"}
    | {"resize", "mode", "ratios", "average", "power", "compile", "evaluate", "probability"}
    | {"classes", "crop_size", "stride", "precision"}
)


def remedy_for_setting(path: str) -> str:
    """What to do about an unknown setting, as the last part of a message."""
    meant = meant_setting(path)
    if meant is None:
        return "see docs/configuration.md for all of them"
    return meant if " " in meant else f"did you mean {meant}?"


def meant_setting(path: str) -> str | None:
    """The setting that an unknown dotted name means, a sentence about it, or None.

    In this order: our own name for it with another section; its name in another tool; a
    misspelt name of ours.  Nothing is proposed because letters alone are alike.
    """
    known = [name for name, _ in words.walk()]
    sections = sorted({name.rpartition(".")[0] for name in known if "." in name})
    path = normalized(path)
    leaf = path.rpartition(".")[2]
    inside = [name for name in known if name.endswith(f".{path}")]
    if len(inside) == 1:
        return inside[0]
    meaning = meaning_of(path)
    if meaning is not None and meaning != path:
        return meaning
    same_leaf = [name for name in known if name.rpartition(".")[2] == leaf]
    if len(same_leaf) == 1 and leaf not in _VAGUE:
        return same_leaf[0]
    return misspelt(path, [*known, *sections])


def misspelt(name: str, known: Iterable[str]) -> str | None:
    """The known name of which `name` is a misspelling in every part, or None.

    A name without a section may stand for the last part of a known one.
    """
    parts = name.split(".")
    best: tuple[int, str] | None = None
    for candidate in known:
        theirs = candidate.split(".")
        compared = theirs[-len(parts) :] if len(parts) == 1 else theirs
        if len(compared) != len(parts):
            continue
        distances = [edits(mine, other) for mine, other in zip(parts, compared, strict=True)]
        if all(d <= _allowed(other) for d, other in zip(distances, compared, strict=True)):
            best = min(best or (sum(distances), candidate), (sum(distances), candidate))
    return best[1] if best is not None else None


def unknown_option(
    name: str, known: Iterable[str], help_command: str, spell: Callable[[str], str] | None
) -> ConfigError:
    """The message for an option that a command lacks.

    Args:
        name: as it was typed, e.g. `--epochs`.
        known: options of the command.
        help_command: what shows them.
        spell: how the command takes a setting, from its dotted name; the setting with the same
            meaning is then proposed.  None: it takes no settings.
    """
    known = sorted(known)
    near = misspelt(name.lstrip("-"), [each.lstrip("-") for each in known])
    meant = meant_setting(name) if spell is not None else None
    remedy = f"see {help_command}"
    if near is not None:
        remedy = f"did you mean --{near}?"
    elif meant is not None and spell is not None:
        remedy = meant if " " in meant else f"write {spell(meant)}"
    return ConfigError(
        name, found="there is no such option", expected=", ".join(known), remedy=remedy
    )


def edits(first: str, second: str) -> int:
    """Number of letters to insert, delete, replace or swap with the next one."""
    before: list[int] = []
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        older, before, row = before, row, [i]
        for j, other in enumerate(second, start=1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == second[j - 2] and first[i - 2] == other:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1]


def _allowed(word: str) -> int:
    return 1 if len(word) <= 5 else 2

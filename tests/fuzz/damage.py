"""Damage to files: bytes, and values of JSON, drawn by a seed so that each case comes again."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

_MAGIC = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1)
_HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 255, 65536, 2**31, 2**62, 2**63, 2**70, -(2**70), 10**400),
    *(0.5, -0.0, 1e308, -1e308, float("inf"), float("-inf"), float("nan")),
    *("", "text", "a\0b", "\ud800", "../../outside", "/etc/hostname", "x" * 100_000, "1e999"),
    *([], {}, [[]], [None], {"": None}, [0] * 1000, "__import__('os').mkdir('outside')"),
)


def damaged_bytes(content: bytes, draw: random.Random) -> bytes:
    """One to four changes: flipped bits, cuts, insertions, repeated and exchanged parts."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        place, length = draw.randrange(len(data) + 1), draw.choice((1, 2, 4, 8, 16, 200))
        part = slice(place, place + length)
        kind = draw.randrange(8)
        if kind <= 1:
            for at in range(place, min(place + draw.choice((1, 1, 3)), len(data))):
                data[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            del data[part]
        elif kind == 4:
            data[place:place] = draw.randbytes(length)
        elif kind == 5:
            number = draw.choice(_MAGIC).to_bytes(8, draw.choice(("little", "big")))
            data[place : place + 8] = number[: len(data[place : place + 8])]
        elif kind == 6:
            other = draw.randrange(len(data) + 1)
            data[part] = data[other : other + length]
        else:
            data[part] = (
                bytes(len(data[part])) if draw.random() < 0.5 else b"\xff" * len(data[part])
            )
    return bytes(data)


def damaged_json(content: bytes, draw: random.Random) -> bytes:
    """One to three values, keys or lists of a JSON text replaced by others of any type."""
    value = json.loads(content)
    for _ in range(draw.choice((1, 1, 2, 3))):
        places: list[tuple[Any, Any]] = []
        _collect(value, places)
        if not places:
            break
        owner, key = draw.choice(places)
        kind = draw.randrange(8)
        if kind == 0:
            del owner[key]
        elif kind == 1 and isinstance(owner, dict):
            owner[draw.choice(("", "x", "size", "\ud800", "__class__"))] = owner.pop(key)
        elif kind == 2 and isinstance(owner, list):
            owner.insert(0, copy.deepcopy(owner[key]))
        elif kind == 3:
            owner[key] = [copy.deepcopy(owner[key]) for _ in range(draw.choice((1, 3, 100)))]
        elif kind == 4 and type(owner[key]) in (int, float):
            owner[key] = draw.choice((-1, 2**31, 0.5, 1e9)) * owner[key]
        else:
            owner[key] = copy.deepcopy(draw.choice(_HOSTILE))
    return json.dumps(value).encode()


def _collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    if isinstance(value, (dict, list)):
        keys = list(value) if isinstance(value, dict) else range(min(len(value), 50))
        for key in keys:
            places.append((value, key))
            _collect(value[key], places)

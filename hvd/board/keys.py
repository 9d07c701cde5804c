"""A keyboard of 102 keys: their names, scan codes and the US layout, from text and chords to strokes.

Scan codes: IBM Personal System/2 Hardware Interface Technical Reference, "Keyboard and auxiliary device controller" and
"Keyboards (101- and 102-key)". Set 1 is what the controller's translation makes of set 2 (hvd/board/native/keyboard.c).
"""

from __future__ import annotations

from typing import Final

from hvd.errors import HvdError

BREAK, EXTENDED = 0xF0, 0xE0

# Name -> scan code of set 2; behind E0 those of the second table.
_PLAIN: Final = """
esc 76  f1 05  f2 06  f3 04  f4 0c  f5 03  f6 0b  f7 83  f8 0a  f9 01  f10 09  f11 78  f12 07  scrolllock 7e
` 0e  1 16  2 1e  3 26  4 25  5 2e  6 36  7 3d  8 3e  9 46  0 45  - 4e  = 55  backspace 66
tab 0d  q 15  w 1d  e 24  r 2d  t 2c  y 35  u 3c  i 43  o 44  p 4d  [ 54  ] 5b  \\ 5d
capslock 58  a 1c  s 1b  d 23  f 2b  g 34  h 33  j 3b  k 42  l 4b  ; 4c  ' 52  enter 5a
leftshift 12  102nd 61  z 1a  x 22  c 21  v 2a  b 32  n 31  m 3a  , 41  . 49  / 4a  rightshift 59
leftctrl 14  leftalt 11  space 29
numlock 77  kpasterisk 7c  kpminus 7b  kpplus 79  kpdot 71
kp0 70  kp1 69  kp2 72  kp3 7a  kp4 6b  kp5 73  kp6 74  kp7 6c  kp8 75  kp9 7d
"""
_EXTENDED: Final = """
rightalt 11  rightctrl 14  leftmeta 1f  rightmeta 27  menu 2f  kpslash 4a  kpenter 5a
insert 70  delete 71  home 6c  end 69  pageup 7d  pagedown 7a  up 75  down 72  left 6b  right 74
"""
# Keys that send more than their own code: what they send when pressed and when released, in set 2.
_ODD: Final = {
    "printscreen": (bytes.fromhex("e012e07c"), bytes.fromhex("e0f07ce0f012")),
    "pause": (bytes.fromhex("e11477e1f014f077"), b""),
}
# Other names, as people write them.
_ALIASES: Final = {
    "ctrl": "leftctrl", "control": "leftctrl", "shift": "leftshift", "alt": "leftalt", "altgr": "rightalt",
    "meta": "leftmeta", "super": "leftmeta", "win": "leftmeta", "escape": "esc", "return": "enter", "ret": "enter",
    "bs": "backspace", "del": "delete", "ins": "insert", "pgup": "pageup", "pgdn": "pagedown", "print": "printscreen",
    "spc": "space", "minus": "-", "equal": "=", "comma": ",", "dot": ".", "slash": "/", "backslash": "\\",
    "semicolon": ";", "apostrophe": "'", "grave": "`", "leftbrace": "[", "rightbrace": "]", "plus": "kpplus",
}  # fmt: skip
# Character of the US layout -> key, without and with shift.
_UNSHIFTED: Final = "`1234567890-=qwertyuiop[]\\asdfghjkl;'zxcvbnm,./"
_SHIFTED: Final = '~!@#$%^&*()_+QWERTYUIOP{}|ASDFGHJKL:"ZXCVBNM<>?'
_CONTROLS: Final = {
    " ": "space",
    "\n": "enter",
    "\r": "enter",
    "\t": "tab",
    "\b": "backspace",
    "\x7f": "backspace",
    "\x1b": "esc",
}

# Characters of one text.
MOST_TEXT: Final = 1 << 16
# Bytes of the longest stroke: with it the keyboard's buffer is full.
MOST_STROKE: Final = 15

# Keys that are pressed one after the other and released in the opposite order.
Stroke = tuple[str, ...]


def _codes(table: str, prefix: bytes) -> dict[str, tuple[bytes, bytes]]:
    words = table.split()
    return {
        name: (prefix + code, prefix + bytes((BREAK,)) + code)
        for name, code in zip(words[::2], map(bytes.fromhex, words[1::2]), strict=True)
    }


# Name of a key -> what it sends when it is pressed and when it is released, in set 2.
KEYS: Final[dict[str, tuple[bytes, bytes]]] = _codes(_PLAIN, b"") | _codes(_EXTENDED, bytes((EXTENDED,))) | _ODD

_CHARACTERS: Final[dict[str, Stroke]] = {
    **{key: (key,) for key in _UNSHIFTED},
    **{character: ("leftshift", key) for character, key in zip(_SHIFTED, _UNSHIFTED, strict=True)},
    **{character: (key,) for character, key in _CONTROLS.items()},
}


def of_text(text: str) -> list[Stroke]:
    """As somebody types it on a US keyboard. Raises HvdError FIELD_INVALID."""
    if len(text) > MOST_TEXT:
        raise _invalid("text", f"{len(text)} characters", "too many", f"type at most {MOST_TEXT} at once")
    strokes = []
    for character in text:
        stroke = _CHARACTERS.get(character)
        if stroke is None:
            raise _invalid("text", ascii(character), "a US keyboard does not have it", "type what is on it")
        strokes.append(stroke)
    return strokes


def of_chord(chord: str) -> Stroke:
    """A key or several with - between them: "enter", "ctrl-c", "ctrl-alt-delete", "ctrl--". Raises HvdError
    FIELD_INVALID."""
    names = [*chord[:-2].split("-"), "-"] if chord.endswith("--") else [chord] if chord == "-" else chord.split("-")
    stroke: list[str] = []
    for name in names:
        lower = name.lower()
        keys = (lower,) if lower in KEYS else (_ALIASES[lower],) if lower in _ALIASES else _CHARACTERS.get(name)
        if keys is None or not name:
            problem = f"there is no key '{name}'"
            raise _invalid(
                "key", ascii(chord), problem, "write enter, f1, up, ctrl-c, ctrl-alt-delete: docs/screen.md has all"
            )
        stroke += [key for key in keys if key not in stroke]
    if sum(len(code) for key in stroke for code in KEYS[key]) > MOST_STROKE:
        raise _invalid("key", ascii(chord), "the keyboard cannot send so many keys at once", "use fewer")
    return tuple(stroke)


def _invalid(field: str, value: str, problem: str, remedy: str) -> HvdError:
    return HvdError("FIELD_INVALID", field=field, value=value, problem=problem, remedy=remedy)

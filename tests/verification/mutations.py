"""Mutations of signed requests: changes that an attacker on the network or a careless client could make to header or target."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from hypothesis import strategies as st

from authmesh.protocol.encoding import b64encode, b64url_decode, b64url_encode
from authmesh.protocol.keys import GROUP_ORDER

Mutation = Callable[[str], str]

# Quotes, separators, blanks, controls, digits and letters of other alphabets, and characters that Unicode folds to ASCII.
_CHARS = st.sampled_from(
    "\"'=,;: +-_/\\.%&?#@*()[]{}<>|^`~!$\t\r\n\x00\x0b\x7f\x85\xa0AZaz0189Gv\u00e9\u0661\uff1d\u201c\u017f\u212a\u2028\ufeff\U0001f600"
)
_PLACE = st.integers(0, 400)


def text() -> st.SearchStrategy[Mutation]:
    """Return a strategy of small changes at any place."""
    return st.one_of(
        st.builds(_replace, _PLACE, _CHARS),
        st.builds(_insert, _PLACE, _CHARS),
        st.builds(_delete, _PLACE, st.integers(1, 3)),
        st.builds(_swap, _PLACE),
        st.builds(_case, _PLACE),
        st.builds(lambda place: lambda value: value[: place % len(value)], _PLACE),
        st.builds(lambda char, count: lambda value: value + char * count, _CHARS, st.integers(1, 5)),
        st.builds(lambda char, count: lambda value: char * count + value, _CHARS, st.integers(1, 5)),
    )


def _replace(place: int, char: str) -> Mutation:
    return lambda value: value[: place % len(value)] + char + value[place % len(value) + 1 :]


def _insert(place: int, char: str) -> Mutation:
    return lambda value: value[: place % len(value)] + char + value[place % len(value) :]


def _delete(place: int, count: int) -> Mutation:
    return lambda value: value[: place % len(value)] + value[place % len(value) + count :]


def _swap(place: int) -> Mutation:
    def swapped(value: str) -> str:
        at = place % max(1, len(value) - 1)
        return value[:at] + value[at : at + 2][::-1] + value[at + 2 :]

    return swapped


def _case(place: int) -> Mutation:
    return lambda value: value[: place % len(value)] + value[place % len(value) :].swapcase()


# --- headers --------------------------------------------------------------------------------------------------------

MEMBERS = ("v", "id", "ts", "nonce", "sig")
_NAME = st.sampled_from(MEMBERS)
_BLANKS = st.sampled_from(["", " ", "  ", "\t", "\n", " \r\n ", ",", "x"])
_VALUES = st.sampled_from(
    [
        "",
        "0",
        "1",
        "01",
        "2",
        "-1",
        "+1",
        "1.0",
        "1e9",
        "0x1",
        "NaN",
        "null",
        "9" * 16,
        "9" * 17,
        "A" * 44,
        "A" * 86,
        "A" * 257,
    ]
)


def members(header: str) -> dict[str, str]:
    return dict(re.findall(r'(\w+)="([^"]*)"', header))


def written(found: Mapping[str, str]) -> str:
    return "AuthMesh " + ",".join(f'{name}="{value}"' for name, value in found.items())


def header(other: str) -> st.SearchStrategy[Mutation]:
    """Return a strategy of changes of a header. `other` is the header of another device for another request."""
    theirs = members(other)
    return st.one_of(
        text(),
        st.builds(_member, _NAME, text()),
        st.builds(lambda name, value: lambda old: written({**members(old), name: value}), _NAME, _VALUES),
        st.builds(lambda name: lambda old: written({**members(old), name: theirs[name]}), _NAME),
        st.builds(
            lambda order: lambda old: written({name: members(old)[name] for name in order}), st.permutations(MEMBERS)
        ),
        st.builds(lambda name: lambda old: written({k: v for k, v in members(old).items() if k != name}), _NAME),
        st.builds(_rename, _NAME, st.sampled_from(["V", "Id", "signature", "id ", " id", "", "v", "ts", "nonce"])),
        st.builds(lambda name: lambda old: f'{old},{name}="{members(old)[name]}"', st.sampled_from([*MEMBERS, "v"])),
        st.builds(lambda value: lambda old: f'{old},extra="{value}"', _VALUES),
        st.builds(lambda before, after: lambda old: old.replace(",", f"{before},{after}"), _BLANKS, _BLANKS),
        st.builds(lambda blanks: lambda old: old.replace("=", f"{blanks}="), _BLANKS),
        st.builds(lambda count: lambda old: old.replace(" ", " " * count, 1), st.integers(0, 700)),
        st.builds(
            lambda scheme: lambda old: old.replace("AuthMesh", scheme, 1),
            st.sampled_from(["authmesh", "AUTHMESH", "AuthMesh\t", "Bearer", "", "AuthMesh AuthMesh", "AuthMesh,"]),
        ),
        st.builds(_bit, st.sampled_from(["id", "sig"]), st.integers(0, 64 * 8 - 1)),
        st.builds(_slack, st.sampled_from(["id", "sig"]), st.integers(1, 15)),
        st.builds(_spelling, st.sampled_from(["id", "sig"]), st.sampled_from(["standard", "url", "padded", "mixed"])),
        st.just(_high_s),
        st.builds(
            lambda by: lambda old: written({**members(old), "ts": str(int(members(old)["ts"]) + by)}),
            st.integers(-99, 99),
        ),
        st.builds(
            lambda zeros: lambda old: written({**members(old), "ts": "0" * zeros + members(old)["ts"]}),
            st.integers(1, 9),
        ),
    )


def _member(name: str, change: Mutation) -> Mutation:
    def changed(old: str) -> str:
        found = members(old)
        return written({**found, name: change(found[name])})

    return changed


def _rename(name: str, new: str) -> Mutation:
    return lambda old: old.replace(f"{name}=", f"{new}=", 1)


def _bytes(value: str) -> bytes:
    return b64url_decode(value.translate(str.maketrans("+/", "-_")).rstrip("="))


def _bit(name: str, place: int) -> Mutation:
    def flipped(old: str) -> str:
        found = members(old)
        raw = bytearray(_bytes(found[name]))
        raw[place // 8 % len(raw)] ^= 1 << place % 8
        return written({**found, name: (b64encode if name == "id" else b64url_encode)(bytes(raw))})

    return flipped


def _slack(name: str, bits: int) -> Mutation:
    """Change the unused bits of the last character: a lax decoder returns the same bytes."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

    def changed(old: str) -> str:
        found = members(old)
        value = found[name].translate(str.maketrans("+/", "-_")).rstrip("=")
        return written({**found, name: value[:-1] + alphabet[alphabet.index(value[-1]) ^ bits]})

    return changed


def _spelling(name: str, how: str) -> Mutation:
    def changed(old: str) -> str:
        found = members(old)
        raw = _bytes(found[name])
        standard, url = b64encode(raw), b64url_encode(raw)
        value = {"standard": standard, "url": url, "padded": url + "==", "mixed": standard[:40] + url[40:]}[how]
        return written({**found, name: value})

    return changed


def _high_s(old: str) -> str:
    """Replace the signature by the other valid one of the same message and key, which anyone can compute."""
    found = members(old)
    raw = _bytes(found["sig"])
    s = GROUP_ORDER - int.from_bytes(raw[32:], "big")
    return written({**found, "sig": b64url_encode(raw[:32] + s.to_bytes(32, "big"))})


# --- targets --------------------------------------------------------------------------------------------------------

_HEX = re.compile(r"%([0-9A-Fa-f]{2})")


def target() -> st.SearchStrategy[Mutation]:
    """Return a strategy of changes of a request target."""
    pieces = [
        "/",
        "/.",
        "/..",
        "/%2e%2e",
        "/%2E/",
        "%2F",
        "%2f..",
        "//",
        "\\",
        "%5C",
        ";a=b",
        "?",
        "??",
        "&",
        "&&",
        "&=",
        "#",
        "#x",
    ]
    pieces += [
        "&a=1",
        "&a",
        "+",
        "%20",
        "%2B",
        "%00",
        "%",
        "%zz",
        "%C3",
        "%ED%A0%80",
        "%FF",
        "é",
        "/../admin",
        "%3F",
        "%26",
        "%3D",
    ]
    return st.one_of(
        text(),
        st.builds(_splice, _PLACE, st.sampled_from(pieces)),
        st.builds(_encode, _PLACE, st.booleans()),
        st.builds(_decode, _PLACE),
        st.just(lambda old: _HEX.sub(lambda match: match.group().swapcase(), old)),
        st.just(lambda old: old.replace("+", "%20")),
        st.just(lambda old: old.replace("%20", "+")),
        st.just(lambda old: old.replace("&", ";")),
        st.builds(_pairs, st.randoms(use_true_random=False)),
        st.builds(
            lambda prefix: lambda old: prefix + old,
            st.sampled_from(["/", "//", "http://a", "https://a:1", "/.", "/a/..", "*"]),
        ),
        st.builds(lambda suffix: lambda old: old + suffix, st.sampled_from(pieces)),
    )


def _splice(place: int, piece: str) -> Mutation:
    return lambda old: old[: place % (len(old) + 1)] + piece + old[place % (len(old) + 1) :]


def _encode(place: int, upper: bool) -> Mutation:
    def encoded(old: str) -> str:
        at = place % len(old)
        escape = f"%{ord(old[at]) & 0xFF:02x}"
        return old[:at] + (escape.upper() if upper else escape) + old[at + 1 :]

    return encoded


def _decode(place: int) -> Mutation:
    def decoded(old: str) -> str:
        found = list(_HEX.finditer(old))
        if not found:
            return old
        match = found[place % len(found)]
        return old[: match.start()] + chr(int(match.group(1), 16)) + old[match.end() :]

    return decoded


def _pairs(random: object) -> Mutation:
    def shuffled(old: str) -> str:
        path, mark, query = old.partition("?")
        pairs = query.split("&")
        random.shuffle(pairs)  # type: ignore[attr-defined]
        return path + mark + "&".join(pairs)

    return shuffled

#!/usr/bin/env python3
"""Makes prices.json: what the relay needs of the data of genai-prices, in whole numbers.

usage: convert.py SOURCE VERSION > prices.json

SOURCE is the data/prices.json of that release of the package genai-prices (MIT licence). Dollars per
million units become nano-dollars per million units, to the nearest; patterns become literals and shapes.
What cannot be said exactly in that form ends the conversion, so that no price is lost unseen.
"""

import json
import re
import sys
from decimal import ROUND_HALF_UP, Decimal
from re import _constants as constants
from re import _parser as parser

# Price keys to kinds of unit, and what they are counted by.
KINDS = {
    "input_mtok": ("input", 1),
    "output_mtok": ("output", 1),
    "cache_read_mtok": ("cache_read", 1),
    "cache_write_mtok": ("cache_write_5m", 1),
    "cache_write_1h_mtok": ("cache_write_1h", 1),
    "input_audio_mtok": ("input_audio", 1),
    "output_audio_mtok": ("output_audio", 1),
    "input_image_mtok": ("input_image", 1),
    "output_image_mtok": ("output_image", 1),
    # Per thousand; kept per million, as all others.
    "requests_kcount": ("calls", 1000),
}
# What the relay never asks for, or what its provider reports as part of a kind above.
LEFT_OUT = {
    "web_searches_kcount",  # refused unless priced by the operator
    "storage_searches_kcount",
    "cache_audio_read_mtok",  # reported as cached input
    "cache_image_read_mtok",
}


class Impossible(Exception):
    pass


def nano(dollars, times):
    exact = Decimal(dollars) * 10**9 * times
    if exact < 0:
        raise Impossible(f"a price below zero: {dollars}")
    return int(exact.to_integral_value(ROUND_HALF_UP))


def prices(found):
    """Lines and tiers, and the keys that have no kind here."""
    lines, tiers, unknown = {}, {}, []
    for key, price in found.items():
        if key in LEFT_OUT:
            continue
        if key not in KINDS:
            unknown.append(key)
            continue
        kind, times = KINDS[key]
        if isinstance(price, dict):
            lines[kind] = nano(price["base"], times)
            for tier in price["tiers"]:
                tiers.setdefault(tier["start"], {})[kind] = nano(tier["price"], times)
        else:
            lines[kind] = nano(price, times)
    return lines, [{"above": above, "lines": tiers[above]} for above in sorted(tiers)], unknown


def shapes(regex):
    """A regular expression as literals in which # stands for a digit."""
    if regex == r"^(?!.*-[tT][tT][sS](?:$|-))":
        return {"not": {"or": [{"ends_with": "-tts"}, {"contains": "-tts-"}]}}
    rest, found, key = regex, [""], "shape"
    if not rest.startswith("^"):
        raise Impossible(f"no start: {regex}")
    rest = rest[1:]
    while rest:
        if match := re.match(r"\\d\{(\d+)\}", rest):
            found = [text + "#" * int(match[1]) for text in found]
        elif match := re.match(r"\\d$", rest):
            found, key = [text + "#" for text in found], "shape_prefix"
        elif match := re.match(r"\\([.\[\]])", rest):
            found = [text + match[1] for text in found]
        elif match := re.match(r"\[([-@]+)\]", rest):
            found = [text + one for text in found for one in match[1]]
        elif match := re.match(r"\$$", rest):
            pass
        elif match := re.match(r"[A-Za-z0-9/=-]", rest):
            found = [text + match[0] for text in found]
        else:
            raise Impossible(f"cannot convert {regex} at {rest}")
        rest = rest[match.end() :]
    if key == "shape" and not regex.endswith("$"):
        raise Impossible(f"no end: {regex}")
    rules = [{key: text.lower()} for text in found]
    return rules[0] if len(rules) == 1 else {"or": rules}


def rule(found):
    ((key, value),) = found.items()
    if key in ("or", "and"):
        rules = [rule(one) for one in value]
        return rules[0] if len(rules) == 1 else {key: rules}
    if key == "regex":
        return shapes(value)
    if key in ("equals", "starts_with", "ends_with", "contains"):
        return {key: value.lower()}
    raise Impossible(f"a rule {key}")


def dated(found):
    constraint = found.get("constraint") or {}
    lines, tiers, unknown = prices(found["prices"])
    made = {"lines": lines}
    if tiers:
        made["tiers"] = tiers
    if "start_date" in constraint:
        made["from"] = constraint["start_date"]
    if "start_time" in constraint:
        made["hours"] = [time(constraint["start_time"]), time(constraint["end_time"])]
    if set(constraint) - {"start_date", "start_time", "end_time"}:
        raise Impossible(f"a constraint {constraint}")
    return made, unknown


def time(text):
    """Seconds of the day, UTC."""
    match = re.fullmatch(r"(\d\d):(\d\d):(\d\d)Z", text)
    if not match:
        raise Impossible(f"a time {text}")
    return int(match[1]) * 3600 + int(match[2]) * 60 + int(match[3])


def model(found):
    lists = found["prices"] if isinstance(found["prices"], list) else [{"prices": found["prices"]}]
    made = [dated(one) for one in lists]
    entry = {"id": found["id"], "match": rule(found["match"])}
    if "context_window" in found:
        entry["context"] = found["context_window"]
    unknown = sorted({key for _, keys in made for key in keys})
    if unknown:
        # No price rather than half of one.
        entry["unpriced"] = ", ".join(unknown)
        entry["prices"] = []
    else:
        entry["prices"] = [one for one, _ in made]
    return entry


def spellings(parsed):
    """All texts that a simple pattern means; nothing if there is no end of them."""
    found = [""]
    for op, value in parsed:
        if op is constants.LITERAL:
            more = [chr(value)]
        elif op is constants.SUBPATTERN:
            more = spellings(value[3])
        elif op is constants.BRANCH:
            more = [text for branch in value[1] for text in spellings(branch)]
        elif op is constants.MAX_REPEAT and value[:2] == (0, 1):
            more = ["", *spellings(value[2])]
        elif op is constants.AT:
            more = [""]
        else:
            more = []
        found = [text + end for text in found for end in more]
    return found


def addresses(pattern):
    """The beginnings of the provider's addresses, without the scheme, where they can be listed."""
    texts = {text.split("://")[-1].rstrip("/.") for text in spellings(parser.parse(pattern))}
    return sorted(texts)


def provider(found):
    entry = {"id": found["id"]}
    if at := addresses(found["api_pattern"]):
        entry["addresses"] = at
    if "fallback_model_providers" in found:
        entry["fallback"] = found["fallback_model_providers"]
    entry["models"] = [model(one) for one in found["models"]]
    return entry


def main():
    source, version = sys.argv[1:]
    with open(source) as file:
        data = json.load(file, parse_float=Decimal)
    made = [provider(one) for one in data]
    out = sys.stdout
    out.write('{"source":' + json.dumps(f"genai-prices {version}") + ',"providers":[\n')
    for number, one in enumerate(made):
        models = one.pop("models")
        out.write(json.dumps(one, separators=(",", ":"))[:-1] + ',"models":[\n')
        out.write(",\n".join(json.dumps(one, separators=(",", ":")) for one in models))
        out.write("]}" + (",\n" if number + 1 < len(made) else "\n"))
    out.write("]}\n")


if __name__ == "__main__":
    main()

"""Values that reach an interpreter as a part of its language: shells, importers, filters, queries, logs, headers."""

import ast
import re
from collections.abc import Callable, Iterator
from typing import Any

from spillover.judges.code.program import FIXED, NUMERIC, REQUEST, UNKNOWN, Program

Nodes = Iterator[Any]
LOG_LEVELS = "debug info warning error critical exception log"
LDAP = NUMERIC | {"escape_filter_chars", "escape_rdn", "escape_dn_chars"}
COMMAND = NUMERIC | {"quote", "join"}
LOGGED = NUMERIC | {"repr", "dumps", "replace", "quote", "encode", "isalnum", "translate", "sub", "splitlines"}
# A group that repeats one repeated atom: exponentially many ways to fail.
NESTED = re.compile(r"\((?:\?:)?(?:\[[^\]]+\]|\\?[\w.])[+*]\)(?:[+*]|\{\d*,\})|\((?:\?:)?(\w)\|\1\w?\)[+*]")
SECRET_VALUE = re.compile(r"(?i)^(?:\w*_)?(?:passw(?:or)?d|pwd|passphrase|secret|api_?key|token|private_key|cvv|ssn)$")


def command_from_variables(p: Program) -> Nodes:
    """A shell gets a command that is put together from values."""
    calls = (*p.called("create_subprocess_shell"), *p.called("getoutput getstatusoutput", "subprocess"))
    yield from (call for call in calls if p.most(call.args[:1], COMMAND) >= UNKNOWN)


def code_from_request(p: Program) -> Nodes:
    """The request says which module is imported, or which attribute is called."""
    for call in (*p.called("import_module __import__"), *p.called("getattr")):
        place = 1 if p.last(call.func) == "getattr" else 0
        name = call.args[place : place + 1]
        listed = any(getattr(node, "id", None) in p.checked[p.function(call)] for node in name)
        if p.most(name, NUMERIC) == REQUEST and not listed:
            yield call


def unsafe_deserializer(p: Program) -> Nodes:
    """Reading the data can run code that is in it."""
    calls = [*p.called("load loads", "dill _pickle cloudpickle joblib"), *p.called("decode", "jsonpickle")]
    calls += [*p.called("read_pickle", "pandas")]
    for call in p.called("load", "torch numpy"):
        keywords = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
        of_torch = p.name(call.func).startswith("torch.")
        if keywords.get("weights_only") is not True if of_torch else keywords.get("allow_pickle") is True:
            calls.append(call)
    yield from (call for call in calls if p.most(call.args[:1], NUMERIC) >= UNKNOWN)


def ldap_filter_from_variables(p: Program) -> Nodes:
    """A search filter of LDAP is put together from values: `*)(uid=*` finds everybody."""
    for call in p.called("search search_s search_st search_ext search_ext_s"):
        for given in (*call.args, *(keyword.value for keyword in call.keywords)):
            is_filter = any(re.match(r"\([&|!(]*\w+=", text) for text in p.texts(given))
            if is_filter and p.origin(given, LDAP) >= UNKNOWN:
                yield call


def xpath_from_variables(p: Program) -> Nodes:
    """A path through XML is put together from values: `' or '1'='1` finds everything."""
    for call in p.called("xpath XPath find findall iterfind findtext"):
        texts = [text for node in call.args[:1] for text in p.texts(node)]
        if (
            any(("[" in text and "'" in text) or '="' in text for text in texts)
            and p.most(call.args[:1], NUMERIC) >= UNKNOWN
        ):
            yield call


def query_from_request(p: Program) -> Nodes:
    """A query of MongoDB has JSON of the request in it, which may be an operator, or runs a text as JavaScript."""
    for node in p.of[ast.Dict]:
        for key, value in zip(node.keys, node.values, strict=True):
            if getattr(key, "value", None) == "$where" and p.origin(value, NUMERIC) >= UNKNOWN:
                yield node
    for call in p.called(
        "find find_one find_one_and_update update_one update_many delete_one delete_many count_documents"
    ):
        for given in call.args[:1]:
            from_json = any("json" in ast.unparse(v) for v in _sources(p, given))
            if from_json and p.origin(given, NUMERIC | {"str"}) == REQUEST:
                yield call


def _sources(p: Program, node: Any) -> Iterator[Any]:
    """An expression and what the names in it stand for."""
    yield node
    for name in (part for part in ast.walk(node) if isinstance(part, ast.Name)):
        yield from (binding.value for binding in p.bindings(name) if binding.value is not None)


def log_line_from_request(p: Program) -> Nodes:
    """A line of the log has text of the request in it, which may hold line breaks and so forge other lines."""
    for call in p.called(LOG_LEVELS):
        if "log" in p.name(call.func).lower() and p.most(call.args, LOGGED) == REQUEST:
            yield call


def secret_in_log(p: Program) -> Nodes:
    """A password or a key is written to the log."""
    calls = [call for call in p.called(LOG_LEVELS) if "log" in p.name(call.func).lower()]
    for call in (*calls, *p.called("print")):
        given = [v for a in call.args for v in (a.values if isinstance(a, ast.JoinedStr) else (a,))]
        values = [getattr(value, "value", value) if isinstance(value, ast.FormattedValue) else value for value in given]
        if any(SECRET_VALUE.match(getattr(v, "attr", getattr(v, "id", ""))) for v in values):
            yield call


def header_from_request(p: Program) -> Nodes:
    """A header of the response is text of the request: line breaks in it add headers, `Location` leads anywhere."""
    for node in p.of[ast.Assign]:
        target = node.targets[0]
        header = isinstance(target, ast.Subscript) and p.last(target.value) in ("headers", "response", "resp", "res")
        if header and p.origin(node.value, NUMERIC | {"quote", "url_for", "replace", "urlencode"}) == REQUEST:
            yield node


def pattern_from_request(p: Program) -> Nodes:
    """The request says which regular expression is run: one can take years."""
    for call in p.called("compile match search fullmatch findall sub split finditer", "re"):
        if p.most(call.args[:1], NUMERIC | {"escape"}) == REQUEST:
            yield call


def pattern_that_explodes(p: Program) -> Nodes:
    """A regular expression has exponentially many ways to fail: a text of thirty letters can take years."""
    for call in p.called("compile match search fullmatch findall sub finditer", "re"):
        if any(NESTED.search(text) for node in call.args[:1] for text in p.texts(node)):
            yield call


def external_entities(p: Program) -> Nodes:
    """XML from outside is read with entities resolved: they can name files and addresses."""
    wrong = {"resolve_entities": True, "load_dtd": True, "no_network": False, "forbid_dtd": False}
    parsers = [*p.called("XMLParser", "lxml"), *p.called("XMLParser ETCompatXMLParser")]
    yield from (node for node in p.set_to(wrong) if any(node in call.keywords for call in parsers))
    if "lxml" in p.packages and not parsers:
        for call in p.called("parse fromstring XML iterparse"):
            name, with_parser = p.name(call.func), len(call.args) > 1 or any(k.arg == "parser" for k in call.keywords)
            if name.startswith(("lxml", "etree", "ET")) and not with_parser and p.most(call.args[:1], NUMERIC) != FIXED:
                yield call


RULES: dict[str, tuple[int, str, Callable[[Program], Nodes]]] = {
    "SP501": (78, "HIGH", command_from_variables),
    "SP502": (94, "HIGH", code_from_request),
    "SP503": (502, "HIGH", unsafe_deserializer),
    "SP504": (90, "MEDIUM", ldap_filter_from_variables),
    "SP505": (643, "MEDIUM", xpath_from_variables),
    "SP506": (943, "MEDIUM", query_from_request),
    "SP507": (117, "MEDIUM", log_line_from_request),
    "SP508": (532, "MEDIUM", secret_in_log),
    "SP509": (113, "MEDIUM", header_from_request),
    "SP510": (730, "MEDIUM", pattern_from_request),
    "SP511": (1333, "MEDIUM", pattern_that_explodes),
    "SP512": (611, "MEDIUM", external_entities),
}

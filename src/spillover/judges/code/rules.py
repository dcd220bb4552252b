"""Weaknesses that Bandit misses: rules over the syntax tree of one program, each with its CWE.

A rule asks where a value goes and who chose it (`Program.origin`). What the CWE numbers mean: https://cwe.mitre.org.
"""

import ast
import re
from collections.abc import Callable, Iterator
from typing import Any

from spillover.judges.code import injections, protections
from spillover.judges.code.program import (
    ESCAPED,
    FUNCTIONS,
    HTML,
    NUMERIC,
    PATH,
    REQUEST,
    RESPONSE,
    SQL,
    UNKNOWN,
    URL,
    Program,
    operands,
)

Nodes = Iterator[Any]
COLLECTING = ("set", "list", "dict", "split", "findall")
TLD = r"(?:com|org|net|edu|gov|io|co|dev|app|info|biz|local|internal)"
TAG = re.compile(
    r"(?i)<(?:!doctype|/?(?:a|b|body|br|button|code|div|em|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|label|"
    r"li|link|main|meta|nav|ol|option|p|pre|script|section|select|small|span|strong|style|svg|table|tbody|td|textarea|th|"
    r"thead|title|tr|u|ul|video))(?=[\s>/]|$)"
)
SQL_TEXT = re.compile(r"(?i)\s*(?:select|insert\s+into|replace\s+into|update|delete\s+from|create|drop|alter)\b")
ESCAPED_VALUE = re.compile(r"\|\s*(?:e|escape)\b")
SECRET = re.compile(r"(?i)(?:^|_)(?:token|secret|passw(?:or)?d|passphrase|otp|nonce|salt|pin|session_id)(?:_|$)|_key$")
URL_NAME = re.compile(r"(?i)url|uri|link|href|host|domain|netloc|origin|refer|redirect|location|next|target")
HOST = re.compile(rf"(?i)(?:https?://)?\.?(?:[\w-]+\.)+{TLD}")
LOOSE_HOST = re.compile(rf"(?<!\\)[\w-]\.{TLD}(?![\w-])|//\S*\.[*+].*\.{TLD}(?![\w-])")  # a bare dot, or .* before it


def html_from_variables(p: Program) -> Nodes:
    """Values that nobody escaped are put into HTML: they can bring tags and scripts with them."""
    escaping = [argument for name in ESCAPED for call in p.calls.get(name, ()) for argument in call.args]
    texts = [(node, node, [node]) for node in (*p.of[ast.JoinedStr], *p.of[ast.BinOp])]
    texts += [(node, node.target, [node.value]) for node in p.of[ast.AugAssign]]
    calls: list[Any] = [call for call in p.called("format replace join") if isinstance(call.func, ast.Attribute)]
    texts += [(call, call.func.value, call.args[call.func.attr == "replace" :] + call.keywords) for call in calls]
    for node, literal, values in texts:
        names = [getattr(target, "id", None) for target in getattr(node._bandit_parent, "targets", ())]
        here = [a for a in escaping if p.function(a) is p.function(node)] if names else escaping
        after = any(a is node or (getattr(a, "id", "") in names and a.lineno > node.lineno) for a in here)
        outermost = not isinstance(node._bandit_parent, ast.BinOp)
        if outermost and not after and any(map(TAG.search, p.texts(literal))) and p.most(values, HTML) >= UNKNOWN:
            yield node


def template_without_autoescape(p: Program) -> Nodes:
    """A Jinja template that escapes nothing: whatever is filled in can bring tags and scripts with it."""
    for call in p.called("Template", "jinja2"):
        texts = p.texts(call.args[0]) if call.args else []
        values = any("{{" in text and not ESCAPED_VALUE.search(text) for text in texts)
        html = not texts or (values and (any(map(TAG.search, texts)) or p.is_view(p.function(call))))
        if html and "autoescape" not in {keyword.arg for keyword in call.keywords}:
            yield call
    off = [(p.name(getattr(node._bandit_parent, "func", None)), node) for node in p.set_to({"autoescape": False})]
    yield from (node for name, node in off if name != "jinja2.Environment")  # known to Bandit: B701


def request_data_in_response(p: Program) -> Nodes:
    """A page says back what the request said, unescaped: a link can make it run a script."""
    calls = [call for call in p.called("make_response Response HttpResponse HTMLResponse") if call.args]
    answers = [(c, c.args[0]) for c in calls if not {"content_type", "mimetype"} & {k.arg for k in c.keywords}]
    if p.packages & {"flask", "bottle", "quart"}:
        answers += [(node, node.value) for node in p.of[ast.Return] if p.is_view(p.function(node))]
    for node, answer in answers:
        body = answer.elts[0] if isinstance(answer, ast.Tuple) and answer.elts else answer
        html = any(map(TAG.search, p.texts(body)))  # is left to html_from_variables
        if not html and not _is_collection(p, body) and p.origin(body, RESPONSE) == REQUEST:
            yield node


def template_from_request(p: Program) -> Nodes:
    """The request becomes a part of the template itself: `{{ }}` in it is run. What is escaped counts as harmless."""
    for call in (*p.called("render_template_string from_string"), *p.called("Template", "jinja2 mako")):
        if p.most(call.args[:1], NUMERIC | ESCAPED) == REQUEST:
            yield call


def sql_from_variables(p: Program) -> Nodes:
    """A query is put together from values instead of being given parameters, perhaps in several steps."""
    for call in p.called("execute executemany executescript raw read_sql read_sql_query text"):
        if p.most(call.args[:1], SQL) >= UNKNOWN and any(map(SQL_TEXT.match, p.texts(call.args[0]))):
            yield call


def path_from_request(p: Program) -> Nodes:
    """The request says which file is used: `../` leads out of the folder."""
    calls = (
        *p.called("open", "open io os codecs"),
        *p.called("remove unlink makedirs mkdir listdir rmtree", "os shutil"),
    )
    for call in (*calls, *p.called("save send_file FileResponse")):
        if p.most(call.args[:1], PATH) == REQUEST:
            yield call
    for call in p.called("read_text read_bytes write_text write_bytes open unlink rmdir"):
        receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
        if receiver is not None and "pathlib" in p.packages and p.origin(receiver, PATH) == REQUEST:
            yield call


def archive_unpacked_unchecked(p: Program) -> Nodes:
    """Members of an archive are written to wherever their names say, also outside of the folder."""
    tar = p.called("extract extractall" if "tarfile" in p.packages and "zipfile" not in p.packages else "")
    for call in (*tar, *p.called("unpack_archive", "shutil")):
        keywords: dict[Any, Any] = {keyword.arg: keyword.value for keyword in call.keywords}
        every = p.last(getattr(keywords.get("members"), "func", None)) == "getmembers"
        checked = any(getattr(node, "id", None) in p.checked[p.function(call)] for node in call.args[:1])
        if (every or p.last(call.func) != "extractall") and not checked and "filter" not in keywords:
            yield call


def writable_for_all(p: Program) -> Nodes:
    """Every user of the machine may change the file."""
    for call in (*p.called("chmod fchmod lchmod"), *p.called("open", "os")):
        opens = p.last(call.func) == "open"
        wrong = 0o003 if opens else 0o002  # 0o666 is what open() itself asks for; the umask takes from it
        modes = call.args[2:] if opens else call.args[:2]
        modes = modes + [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
        left_to_bandit = not opens and isinstance(call.args[1] if len(call.args) > 1 else None, ast.Constant)  # B103
        bits = [value for mode in modes for value in p.literals(mode) if type(value) is int]
        if not left_to_bandit and any(value & wrong == wrong for value in bits):
            yield call


def url_checked_by_substring(p: Program) -> Nodes:
    """A URL passes if the right host is anywhere in it, or is its start: `evil.org/?example.com` has it too."""
    for node in p.of[ast.Compare]:
        match node:
            case ast.Compare(left=ast.Constant(value=str(text)), ops=[ast.In() | ast.NotIn()], comparators=[whole]):
                if HOST.fullmatch(text) and URL_NAME.search(ast.unparse(whole)) and not _is_collection(p, whole):
                    yield node
    for call in p.called("startswith endswith find"):
        ends = p.last(call.func) == "endswith"
        texts = [text for node in call.args[:1] for text in p.texts(node) if not (ends and text.startswith("."))]
        if any(map(HOST.fullmatch, texts)) and URL_NAME.search(ast.unparse(call.func)):
            yield call


def url_checked_by_loose_pattern(p: Program) -> Nodes:
    """A pattern for hosts fits others too: a bare dot stands for any letter, `.*` for any address before the host."""
    uses = p.calls.keys() & {"match", "search", "fullmatch"}
    for call in p.called("compile match search fullmatch", "re") if uses else ():
        texts = [text for node in call.args[:1] for text in p.texts(node) if "@" not in text and len(text) < 300]
        if any(map(LOOSE_HOST.search, texts)):
            yield call


def redirect_to_request(p: Program) -> Nodes:
    """The request says where the visitor is sent: a link to this site can lead to any other."""
    calls = p.called("redirect HttpResponseRedirect RedirectResponse")
    yield from (call for call in calls if call.args and _begins_with_request(p, call.args[0]))


def host_from_request(p: Program) -> Nodes:
    """The request says which host the server calls: it can be one behind the firewall."""
    calls = [*p.called("get post put head delete patch stream", "requests httpx"), *p.called("urlopen urlretrieve")]
    clients = p.packages & {"aiohttp", "httpx", "requests", "urllib3"}
    named = p.called("get post put head request") if clients else ()
    calls += [c for c in named if re.search(r"(?i)session|client|http", p.name(getattr(c.func, "value", None)))]
    for call in calls:
        place = 1 if p.last(call.func) in ("request", "stream") else 0
        given = [*call.args[place : place + 1], *(k.value for k in call.keywords if k.arg == "url")]
        if any(_begins_with_request(p, address) for address in given):
            yield call


def certificate_unchecked(p: Program) -> Nodes:
    """The other side of a TLS connection need not prove who it is."""
    none = "CERT_NONE"
    yield from p.set_to(
        {"check_hostname": False, "verify_ssl": False, "verify_mode": none, "cert_reqs": none, "ssl": False}
    )


def random_secret(p: Program) -> Nodes:
    """A secret comes from a generator whose next values can be computed from earlier ones."""
    for call in (call for call in p.of[ast.Call] if p.name(call.func).startswith("random.")):
        names: list[str] = []
        for outer in p.around(call):
            targets = getattr(outer, "targets", [getattr(outer, "target", None)])
            names += [getattr(target, "id", getattr(target, "attr", "")) for target in targets]
            names.append(getattr(outer, "arg", "") or getattr(outer, "name", "") or "")
            if isinstance(outer, FUNCTIONS):
                break
        if any(map(SECRET.search, names)) and p.last(call.func) not in ("SystemRandom", "seed", "shuffle"):
            yield call


def _is_collection(p: Program, node: Any) -> bool:
    """Whether an expression holds elements rather than text: `in` looks for a whole one, and Flask sends it as JSON."""
    if isinstance(node, ast.Name):
        bound = [binding.value for binding in p.bindings(node) if not binding.weak]
        return any(not isinstance(value, ast.Name) and _is_collection(p, value) for value in bound)
    collections = (ast.List, ast.Tuple, ast.Set, ast.Dict, ast.ListComp, ast.SetComp, ast.DictComp)
    return isinstance(node, collections) or p.last(getattr(node, "func", None)) in COLLECTING


def _begins_with_request(p: Program, node: Any, depth: int = 3) -> bool:
    """Whether the request says how an address begins, apart from a bare scheme."""
    match node:
        case ast.BinOp():
            first, *rest = operands(node)
            bare = isinstance(first, ast.Constant) and first.value in ("http://", "https://")
            return _begins_with_request(p, rest[0] if bare and rest else first, depth)
        case ast.JoinedStr(values=[ast.Constant(value="http://" | "https://"), start, *_] | [start, *_]):
            return _begins_with_request(p, start, depth)
        case ast.Name() if depth and p.origin(node, URL) == REQUEST:
            values = [binding.value for binding in p.bindings(node) if not binding.weak]
            return any(value is None or _begins_with_request(p, value, depth - 1) for value in values)
    return p.origin(node, URL) == REQUEST


# Rule -> CWE, severity, and what finds the nodes with the weakness: its name is the rule's, its docstring says why.
RULES: dict[str, tuple[int, str, Callable[[Program], Nodes]]] = {
    "SP101": (79, "MEDIUM", html_from_variables),
    "SP102": (79, "HIGH", template_without_autoescape),
    "SP103": (79, "MEDIUM", request_data_in_response),
    "SP104": (1336, "HIGH", template_from_request),
    "SP105": (89, "MEDIUM", sql_from_variables),
    "SP201": (22, "HIGH", path_from_request),
    "SP202": (22, "MEDIUM", archive_unpacked_unchecked),
    "SP203": (732, "MEDIUM", writable_for_all),
    "SP301": (20, "MEDIUM", url_checked_by_substring),
    "SP302": (625, "MEDIUM", url_checked_by_loose_pattern),
    "SP303": (601, "MEDIUM", redirect_to_request),
    "SP304": (918, "HIGH", host_from_request),
    "SP401": (295, "HIGH", certificate_unchecked),
    "SP402": (330, "MEDIUM", random_secret),
    **injections.RULES,
    **protections.RULES,
}

"""Names weaknesses that Bandit misses: rules over the syntax tree of one program, each with its CWE.

A rule looks at where a value goes and at who chose it (its origin). Values are followed by name, within one program, in
the order of its statements; what is not followed is UNKNOWN. What the CWE numbers mean: https://cwe.mitre.org.
"""

import ast
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SCOPES = (*FUNCTIONS, ast.Module)
AT_MOST = 30  # bindings of one name that are followed
ADDING = ("append", "add", "insert", "extend", "update")
# Origins: the program itself chooses a value, nobody knows who does, or whoever sends a web request.
FIXED, UNKNOWN, REQUEST = range(3)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Functions and methods whose result holds nothing harmful: numbers, times, random identifiers.
NUMERIC = _words(
    "int float len round abs bool ord hash id sum count now today utcnow time perf_counter timestamp isoformat uuid1 "
    "uuid4 token_hex token_urlsafe hexdigest range Decimal"
)
# Those whose result holds what they were given.
PASSING = _words(
    "str repr format bytes list tuple set dict sorted reversed enumerate zip min max next iter filter map join unquote "
    "loads dumps strip lstrip rstrip lower upper title capitalize replace split splitlines partition encode decode get "
    "pop items keys values getlist to_dict read Path abspath realpath normpath expanduser resolve joinpath copy dedent "
    "escape clean Markup mark_safe urljoin"
)
# Those that make a value harmless for one purpose.
ESCAPED = _words("escape html_escape escape_html conditional_escape format_html clean sanitize sanitize_html")
HTML = NUMERIC | ESCAPED | _words("quote quote_plus quoteattr urlencode url_for reverse jsonify highlight")
HTML |= _words("render render_template render_template_string render_to_string")  # the template is judged by itself
RESPONSE = HTML | _words("dumps json get_json")  # no other site can make a browser send JSON and show the answer
SQL = NUMERIC | _words("Identifier Literal quote_ident quote_identifier quote_name escape_string")
PATH = NUMERIC | _words("secure_filename basename safe_join quote sanitize_filename")
URL = NUMERIC | _words("url_for reverse quote quote_plus urlencode")
CHECKABLE = {PATH, URL}  # purposes for which a condition on the value counts as a check
NO_CHECK = _words("exists isfile isdir is_file is_dir endswith len isinstance print open")

REQUESTS = ("request", "flask.request", "self.request", "bottle.request")
NOT_FROM_SENDER = _words("method user session remote_addr endpoint blueprint is_json app state scheme is_secure")
ROUTES = _words("route get post put delete api_view websocket")


class Binding(NamedTuple):
    """One way in which a name gets a value, which is None for a parameter. A weak one adds to what was there before."""

    position: tuple[int, int]  # line and column of its statement
    statement: Any
    value: Any
    weak: bool


class Program:
    """A parsed program and what rules ask about it: nodes in the order of the text, calls by name, values by name.

    Every node but the module says what it is in (`_bandit_parent`) and as which part of it (`_spillover_field`).
    """

    def __init__(self, nodes: list[Any]) -> None:
        self.nodes = nodes
        self.of: dict[type, list[Any]] = defaultdict(list)
        for node in nodes:
            self.of[type(node)].append(node)
        self.aliases: dict[str, str] = {}  # what names stand for after imports
        self.modules: set[str] = {"os.path"}
        for node in self.of[ast.Import]:
            self.aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
            self.modules |= {alias.name for alias in node.names}
        for node in self.of[ast.ImportFrom]:
            self.aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        self.packages = {name.split(".")[0] for name in (*self.modules, *self.aliases.values())}
        self.calls: dict[str, list[ast.Call]] = defaultdict(list)  # by the last part of their name
        for call in self.of[ast.Call]:
            self.calls[self.last(call.func)].append(call)
        self._origins: dict[tuple[int, frozenset[str]], int] = {}

    def name(self, node: Any) -> str:
        """The dotted name of an expression with import aliases resolved; `.name` after anything that has none."""
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        parts.append(self.aliases.get(node.id, node.id) if isinstance(node, ast.Name) else "")
        return ".".join(reversed(parts))

    def last(self, node: Any) -> str:
        """The last part of the name."""
        return self.name(node).rpartition(".")[2]

    def called(self, names: str, modules: str = "") -> Iterator[ast.Call]:
        """Calls of functions or methods with one of the names; with `modules`, only of functions from one of these."""
        for call in (call for name in names.split() for call in self.calls.get(name, ())):
            if not modules or self.name(call.func).split(".")[0] in modules.split():
                yield call

    def set_to(self, wrong: dict[str, Any]) -> Iterator[Any]:
        """Keywords and attributes that are set to a wrong value: a constant, or a name by its last part."""
        found = [(node.arg, node.value, node) for node in self.of[ast.keyword]]
        found += [(getattr(node.targets[0], "attr", None), node.value, node) for node in self.of[ast.Assign]]
        for name, value, node in found:
            if name in wrong and wrong[name] == (value.value if isinstance(value, ast.Constant) else self.last(value)):
                yield node

    def around(self, node: Any) -> Iterator[Any]:
        """What the node is in, from the inside out."""
        while (node := getattr(node, "_bandit_parent", None)) is not None:
            yield node

    def function(self, node: Any) -> Any:
        """The function that a node is in, or the module."""
        return next((outer for outer in self.around(node) if isinstance(outer, SCOPES)), self.nodes[0])

    def is_view(self, function: Any) -> bool:
        """Whether a function answers web requests: it has a route, or its first parameter is the request."""
        if not isinstance(function, FUNCTIONS):
            return False
        names = [argument.arg for argument in function.args.args if argument.arg != "self"]
        decorators = [d.func for d in function.decorator_list if isinstance(d, ast.Call)]
        return names[:1] == ["request"] or any(self.last(decorator) in ROUTES for decorator in decorators)

    def bindings(self, use: ast.Name) -> list[Binding]:
        """The bindings of a name that can hold where it is used, the latest first.

        In the function of the use: from the latest one before it back to one that is certain to have happened, as
        those in a branch of an `if` are not. From outer functions: any.
        """
        scopes = [outer for outer in self.around(use) if isinstance(outer, SCOPES)]
        scope = next((scope for scope in scopes if (scope, use.id) in self._bindings), None)
        found = self._bindings[scope, use.id] if scope else []
        if scope is not scopes[0]:
            return found[: -AT_MOST - 1 : -1]
        statements: list[Any] = [outer for outer in self.around(use) if isinstance(outer, ast.stmt)]
        blocks = {(statement._bandit_parent, statement._spillover_field) for statement in statements}
        holding: list[Binding] = []
        place = bisect_right(found, (statements[0].lineno, statements[0].col_offset), key=lambda found: found.position)
        for binding in reversed(found[max(0, place - AT_MOST) : place]):
            own = binding.statement
            if binding.weak or own is not statements[0]:
                holding.append(binding)
                if not binding.weak and (own is scope or (own._bandit_parent, own._spillover_field) in blocks):
                    break
        return holding or found[:AT_MOST]  # bound only later: in a loop, perhaps

    @cached_property
    def _bindings(self) -> dict[tuple[Any, str], list[Binding]]:
        """All bindings by function and name, in the order of the text."""
        found: dict[tuple[Any, str], list[Binding]] = defaultdict(list)
        for node in self.nodes:
            match node:
                case ast.arg(arg=name):
                    value, weak = None, False
                case ast.Name(id=name, ctx=ast.Store()):
                    source = next(o for o in self.around(node) if not isinstance(o, (ast.Tuple, ast.List, ast.Starred)))
                    value = next(getattr(source, f) for f in ("value", "iter", "context_expr") if hasattr(source, f))
                    if source is not next(self.around(node)) or hasattr(source, "iter"):
                        value = ast.Starred(value)  # an element of it
                    weak = isinstance(source, (ast.AugAssign, ast.comprehension))
                case ast.Call(func=ast.Attribute(ast.Name(id=name), attr), args=[*_, value]) if attr in ADDING:
                    weak = True
                case ast.Assign(targets=[ast.Subscript(value=ast.Name(id=name))], value=value):
                    weak = True
                case _:
                    continue
            statement = next(outer for outer in (node, *self.around(node)) if isinstance(outer, ast.stmt))
            key = (self.function(node), name)
            key = (self.nodes[0], name) if weak and key not in found else key
            found[key].append(Binding((statement.lineno, statement.col_offset), statement, value, weak))
        return found

    def origin(self, node: Any, cleaners: frozenset[str]) -> int:
        """Who chooses the value of an expression, as far as the text tells; FIXED also where a cleaner made it."""
        match node:
            case None | ast.Constant() | ast.Compare() | ast.UnaryOp():
                return FIXED
            case ast.Name():
                return self._origin_of_name(node, cleaners)
            case ast.Call():
                return self._origin_of_call(node, cleaners)
            case ast.Attribute() if node.attr not in cleaners:
                return REQUEST if self._reads_request(node) else max(self.origin(node.value, cleaners), UNKNOWN)
            case ast.BinOp(op=ast.Add() | ast.Mod() | ast.Div()):
                return self.most(operands(node), cleaners)
            case ast.BinOp() | ast.Attribute():
                return FIXED
            case ast.FormattedValue(format_spec=ast.JoinedStr(values=[ast.Constant(value=str(form))])):
                return FIXED if form.endswith(tuple("dfFeEgGn%xXob")) else self.origin(node.value, cleaners)
            case ast.IfExp():
                return self.most((node.body, node.orelse), cleaners)
            case ast.Subscript():
                return self.origin(node.value, cleaners)
        return self.most((part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)), cleaners)

    def most(self, nodes: Iterable[Any], cleaners: frozenset[str]) -> int:
        """The most doubtful origin among some expressions."""
        return max((self.origin(node, cleaners) for node in nodes), default=FIXED)

    def _origin_of_call(self, call: ast.Call, cleaners: frozenset[str]) -> int:
        numeric = any(keyword.arg == "type" and self.last(keyword.value) in NUMERIC for keyword in call.keywords)
        given: list[Any] = [*call.args, *call.keywords]
        if self.last(call.func) in cleaners or numeric:  # numeric: request.args.get("page", type=int)
            return FIXED
        if isinstance(call.func, ast.Attribute):
            if self._reads_request(call.func):
                return REQUEST
            if self.name(call.func.value) not in self.modules:
                given.append(call.func.value)
        return self.most(given, cleaners) if self.last(call.func) in PASSING else UNKNOWN

    def _origin_of_name(self, node: ast.Name, cleaners: frozenset[str]) -> int:
        key = (id(node), cleaners)
        if key not in self._origins:
            self._origins[key] = FIXED  # where it is asked for its own value, its other bindings decide
            try:
                found = [self._origin_of_binding(binding, node.id, cleaners) for binding in self.bindings(node)]
            except RecursionError:  # too long a way back
                found = []
            self._origins[key] = max(found, default=UNKNOWN)
            if cleaners in CHECKABLE and node.id in self.checked[self.function(node)]:
                self._origins[key] = min(UNKNOWN, self._origins[key])
        return self._origins[key]

    def _origin_of_binding(self, binding: Binding, name: str, cleaners: frozenset[str]) -> int:
        if binding.value is not None:
            return self.origin(binding.value, cleaners)
        function = binding.statement
        if not self.is_view(function) or name in ("self", "request"):
            return UNKNOWN
        routes = "".join(str(getattr(part, "value", "")) for d in function.decorator_list for part in ast.walk(d))
        return FIXED if re.search(rf"<(?:int|float|uuid):{re.escape(name)}>", routes) else REQUEST

    def _reads_request(self, node: ast.Attribute) -> bool:
        """Whether an attribute is a part of a web request that its sender chose: `request.args`, `request.get_json`."""
        root, _, attribute = self.name(node).rpartition(".")
        return root in REQUESTS and attribute not in NOT_FROM_SENDER

    @cached_property
    def checked(self) -> dict[Any, set[str]]:
        """The names, by function, that a condition compares or hands to a function that may check them.

        A comparison with None or "" checks nothing, nor does the search for a part other than `..` or a slash.
        """
        found: dict[Any, set[str]] = defaultdict(set)
        for test in (node.test for kind in (ast.If, ast.IfExp, ast.While, ast.Assert) for node in self.of[kind]):
            for part in ast.walk(test):
                match part:
                    case ast.Compare(comparators=[ast.Constant(value=None | "")]):
                        continue
                    case ast.Compare(left=ast.Constant(value=text), ops=[ast.In() | ast.NotIn()]):
                        checks = re.search(r"\.\.|[/\\]", str(text)) is not None
                    case ast.Call():
                        checks = self.last(part.func) not in NO_CHECK
                    case _:
                        checks = isinstance(part, ast.Compare)
                if checks:
                    found[self.function(test)] |= {name.id for name in ast.walk(part) if isinstance(name, ast.Name)}
        return found

    def literals(self, node: Any, depth: int = 2) -> Iterator[Any]:
        """The constants that an expression is made of, also by way of names; "0" for the values in f-strings."""
        match node:
            case ast.Constant(value=value):
                yield value
            case ast.JoinedStr(values=values):
                yield "".join(str(v.value) if isinstance(v, ast.Constant) else "0" for v in values)
            case ast.BinOp(op=ast.Add() | ast.Mod() | ast.BitOr()):
                for operand in operands(node):
                    yield from self.literals(operand, depth)
            case ast.Call(func=ast.Attribute(value=value, attr="format" | "replace" | "strip")):
                yield from self.literals(value, depth)
            case ast.Name() if depth:
                for binding in self.bindings(node):
                    yield from self.literals(binding.value, depth - 1)

    def texts(self, node: Any) -> list[str]:
        """The strings among the literals."""
        return [text for text in self.literals(node) if isinstance(text, str)]


def operands(node: Any) -> Iterator[Any]:
    """The operands of a chain of operators, from left to right; however long the chain is."""
    stack = [node]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.BinOp):
            stack += [node.right, node.left]
        else:
            yield node


# -- the rules ---------------------------------------------------------------------------------------------------------

Found = Iterator[Any]
TLD = r"(?:com|org|net|edu|gov|io|co|dev|app|info|biz|local|internal)"
TAG = re.compile(
    r"(?i)<(?:!doctype|/?(?:a|b|body|br|button|code|div|em|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|label|"
    r"li|link|main|meta|nav|ol|option|p|pre|script|section|select|small|span|strong|style|svg|table|tbody|td|textarea|th|"
    r"thead|title|tr|u|ul|video))(?=[\s>/]|$)"
)
SQL_TEXT = re.compile(r"(?i)\s*(?:select|insert\s+into|replace\s+into|update|delete\s+from|create|drop|alter)\b")
SECRET = re.compile(r"(?i)(?:^|_)(?:token|secret|passw(?:or)?d|passphrase|otp|nonce|salt|pin|session_id)(?:_|$)|_key$")
URL_NAME = re.compile(r"(?i)url|uri|link|href|host|domain|netloc|origin|refer|redirect|location|next|target")
HOST = re.compile(rf"(?i)(?:https?://)?\.?(?:[\w-]+\.)+{TLD}")
LOOSE_HOST = re.compile(rf"(?<!\\)[\w-]\.{TLD}(?![\w-])|//\S*\.[*+].*\.{TLD}(?![\w-])")  # a bare dot, or .* before it


def html_from_variables(p: Program) -> Found:
    """Values that nobody escaped are put into HTML: they can bring tags and scripts with them."""
    escaping = [argument for name in ESCAPED for call in p.calls.get(name, ()) for argument in call.args]
    made = [(node, node, [node]) for node in (*p.of[ast.JoinedStr], *p.of[ast.BinOp])]
    made += [(node, node.target, [node.value]) for node in p.of[ast.AugAssign]]
    calls: list[Any] = [call for call in p.called("format replace join") if isinstance(call.func, ast.Attribute)]
    made += [(call, call.func.value, call.args[call.func.attr == "replace" :] + call.keywords) for call in calls]
    for node, literal, values in made:
        names = [getattr(target, "id", None) for target in getattr(node._bandit_parent, "targets", ())]
        here = [a for a in escaping if p.function(a) is p.function(node)] if names else escaping
        after = any(a is node or (getattr(a, "id", "") in names and a.lineno > node.lineno) for a in here)
        outermost = not isinstance(node._bandit_parent, ast.BinOp)
        if outermost and not after and any(map(TAG.search, p.texts(literal))) and p.most(values, HTML) >= UNKNOWN:
            yield node


def template_without_autoescape(p: Program) -> Found:
    """A Jinja template that escapes nothing: whatever is filled in can bring tags and scripts with it."""
    for call in p.called("Template", "jinja2"):
        texts = p.texts(call.args[0]) if call.args else []
        html = not texts or any(map(TAG.search, texts)) or p.is_view(p.function(call))
        if html and "autoescape" not in {keyword.arg for keyword in call.keywords}:
            yield call
    off = [(p.name(getattr(node._bandit_parent, "func", None)), node) for node in p.set_to({"autoescape": False})]
    yield from (node for name, node in off if name != "jinja2.Environment")  # known to Bandit: B701


def request_data_in_response(p: Program) -> Found:
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


def template_from_request(p: Program) -> Found:
    """The request becomes a part of the template itself; escaping does not help against `{{ }}`."""
    for call in (*p.called("render_template_string from_string"), *p.called("Template", "jinja2 mako")):
        if p.most(call.args[:1], NUMERIC) == REQUEST:
            yield call


def sql_from_variables(p: Program) -> Found:
    """A query is put together from values instead of being given parameters, perhaps in several steps."""
    for call in p.called("execute executemany executescript raw read_sql read_sql_query text"):
        if p.most(call.args[:1], SQL) >= UNKNOWN and any(map(SQL_TEXT.match, p.texts(call.args[0]))):
            yield call


def path_from_request(p: Program) -> Found:
    """The request says which file is used: `../` leads out of the folder."""
    calls = (
        *p.called("open", "open io os codecs"),
        *p.called("remove unlink makedirs mkdir listdir rmtree", "os shutil"),
    )
    for call in (*calls, *p.called("save send_file FileResponse")):
        if p.most(call.args[:1], PATH) == REQUEST:
            yield call


def archive_unpacked_unchecked(p: Program) -> Found:
    """Members of an archive are written to wherever their names say, also outside of the folder."""
    tar = p.called("extract extractall" if "tarfile" in p.packages and "zipfile" not in p.packages else "")
    for call in (*tar, *p.called("unpack_archive", "shutil")):
        keywords: dict[Any, Any] = {keyword.arg: keyword.value for keyword in call.keywords}
        every = p.last(getattr(keywords.get("members"), "func", None)) == "getmembers"
        checked = any(getattr(node, "id", None) in p.checked[p.function(call)] for node in call.args[:1])
        if (every or p.last(call.func) != "extractall") and not checked and "filter" not in keywords:
            yield call


def writable_for_all(p: Program) -> Found:
    """Every user of the machine may change the file."""
    for call in (*p.called("chmod fchmod lchmod"), *p.called("open", "os")):
        opens = p.last(call.func) == "open"
        wrong = 0o003 if opens else 0o002  # 0o666 is what open() itself asks for; the umask takes from it
        modes = call.args[2:] if opens else call.args[:2]
        modes = modes + [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
        known = not opens and isinstance(call.args[1] if len(call.args) > 1 else None, ast.Constant)  # to Bandit: B103
        bits = [value for mode in modes for value in p.literals(mode) if type(value) is int]
        if not known and any(value & wrong == wrong for value in bits):
            yield call


def url_checked_by_substring(p: Program) -> Found:
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


def url_checked_by_loose_pattern(p: Program) -> Found:
    """A pattern for hosts fits others too: a bare dot stands for any letter, `.*` for any address before the host."""
    uses = p.calls.keys() & {"match", "search", "fullmatch"}
    for call in p.called("compile match search fullmatch", "re") if uses else ():
        texts = [text for node in call.args[:1] for text in p.texts(node) if "@" not in text and len(text) < 300]
        if any(map(LOOSE_HOST.search, texts)):
            yield call


def redirect_to_request(p: Program) -> Found:
    """The request says where the visitor is sent: a link to this site can lead to any other."""
    calls = p.called("redirect HttpResponseRedirect RedirectResponse")
    yield from (call for call in calls if call.args and _begins_with_request(p, call.args[0]))


def host_from_request(p: Program) -> Found:
    """The request says which host the server calls: it can be one behind the firewall."""
    calls = (*p.called("get post put head delete patch", "requests httpx"), *p.called("urlopen urlretrieve"))
    yield from (call for call in calls if call.args and _begins_with_request(p, call.args[0]))


def certificate_unchecked(p: Program) -> Found:
    """The other side of a TLS connection need not prove who it is."""
    none = "CERT_NONE"
    yield from p.set_to({"check_hostname": False, "verify_ssl": False, "verify_mode": none, "cert_reqs": none})


def random_secret(p: Program) -> Found:
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
    many = (ast.List, ast.Tuple, ast.Set, ast.Dict, ast.ListComp, ast.SetComp, ast.DictComp)
    return isinstance(node, many) or p.last(getattr(node, "func", None)) in ("set", "list", "dict", "split", "findall")


def _begins_with_request(p: Program, node: Any, depth: int = 3) -> bool:
    """Whether the request says how an address begins, apart from a bare scheme."""
    match node:
        case ast.BinOp():
            return _begins_with_request(p, next(operands(node)), depth)
        case ast.JoinedStr(values=[ast.Constant(value="http://" | "https://"), start, *_] | [start, *_]):
            return _begins_with_request(p, start, depth)
        case ast.Name() if depth and p.origin(node, URL) == REQUEST:
            found = [binding.value for binding in p.bindings(node) if not binding.weak]
            return any(value is None or _begins_with_request(p, value, depth - 1) for value in found)
    return p.origin(node, URL) == REQUEST


# Rule -> CWE, severity, and what finds the nodes with the weakness: its name is the rule's, its docstring says why.
RULES: dict[str, tuple[int, str, Callable[[Program], Found]]] = {
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
}

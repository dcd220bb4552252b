"""A parsed program as the rules see it: its calls and names, and who chose each value (its origin).

Values are followed by name, within one program, in the order of its statements; what is not followed is UNKNOWN.
"""

import ast
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
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
    "with_name with_suffix "
    "escape clean Markup mark_safe urljoin"
)
DERIVING = _words("urlsplit urlparse match fullmatch search ip_address getaddrinfo gethostbyname commonpath relpath")
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

CLIENTS = _words("requests httpx aiohttp urllib3")  # what they return is another server's
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
        settings = [(node.arg, node.value, node) for node in self.of[ast.keyword]]
        settings += [(getattr(node.targets[0], "attr", None), node.value, node) for node in self.of[ast.Assign]]
        for name, value, node in settings:
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
        bindings = self._bindings[scope, use.id] if scope else []
        if scope is not scopes[0]:
            return bindings[: -AT_MOST - 1 : -1]
        statements: list[Any] = [outer for outer in self.around(use) if isinstance(outer, ast.stmt)]
        blocks = {(statement._bandit_parent, statement._spillover_field) for statement in statements}
        holding: list[Binding] = []
        position = statements[0].lineno, statements[0].col_offset
        place = bisect_right(bindings, position, key=lambda binding: binding.position)
        for binding in reversed(bindings[max(0, place - AT_MOST) : place]):
            by = binding.statement
            if binding.weak or by is not statements[0]:
                holding.append(binding)
                if not binding.weak and (by is scope or (by._bandit_parent, by._spillover_field) in blocks):
                    break
        return holding or bindings[:AT_MOST]  # bound only later: in a loop, perhaps

    @cached_property
    def _bindings(self) -> dict[tuple[Any, str], list[Binding]]:
        """All bindings by function and name, in the order of the text."""
        bindings: dict[tuple[Any, str], list[Binding]] = defaultdict(list)
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
            key = (self.nodes[0], name) if weak and key not in bindings else key
            bindings[key].append(Binding((statement.lineno, statement.col_offset), statement, value, weak))
        return bindings

    def origin(self, node: Any, cleaners: frozenset[str]) -> int:
        """Who chooses the value of an expression, as far as the text tells; FIXED also where a cleaner made it."""
        match node:
            case None | ast.Name(id="__file__") | ast.Constant() | ast.Compare() | ast.UnaryOp():
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
            if self.name(call.func).split(".")[0] in CLIENTS:
                return UNKNOWN
            if call.func.attr == "get" and self._is_table(call.func.value):
                return self.most(call.args[1:], cleaners)
            if self.name(call.func.value) not in self.modules:
                given.append(call.func.value)
        return self.most(given, cleaners) if self.last(call.func) in PASSING else UNKNOWN

    def _origin_of_name(self, node: ast.Name, cleaners: frozenset[str]) -> int:
        key = (id(node), cleaners)
        if key not in self._origins:
            self._origins[key] = FIXED  # where it is asked for its own value, its other bindings decide
            try:
                origins = [self._origin_of_binding(binding, node.id, cleaners) for binding in self.bindings(node)]
            except RecursionError:  # too long a way back
                origins = []
            self._origins[key] = max(origins, default=UNKNOWN)
            checks = self.checked if cleaners in CHECKABLE else self.listed if cleaners is SQL else None
            if checks is not None and node.id in checks[self.function(node)]:
                self._origins[key] = FIXED if cleaners is SQL else min(UNKNOWN, self._origins[key])
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

    def _is_table(self, node: Any) -> bool:
        """Whether an expression is a dictionary that stands in the program."""
        if isinstance(node, ast.Name):
            values = [binding.value for binding in self.bindings(node) if not binding.weak]
            return bool(values) and all(isinstance(value, ast.Dict) for value in values)
        return isinstance(node, ast.Dict)

    @cached_property
    def checked(self) -> dict[Any, set[str]]:
        """The names, by function, that a condition restricts, or hands to a function that may check them."""
        return self._checks(listed_only=False)

    @cached_property
    def listed(self) -> dict[Any, set[str]]:
        """The names, by function, of which a condition asks whether they are on a list."""
        return self._checks(listed_only=True)

    def _checks(self, *, listed_only: bool) -> dict[Any, set[str]]:
        """Names by function that conditions check, and those that a checked value is derived from."""
        checked: dict[Any, set[str]] = defaultdict(set)
        for node in (node for kind in (ast.If, ast.IfExp, ast.While, ast.Assert) for node in self.of[kind]):
            for part in self._conditions(node.test):
                if self._restricts(part, node, listed_only):
                    checked[self.function(node)] |= self._names_in(part)
        if not listed_only:
            for call in (node.value for node in self.of[ast.Expr] if isinstance(node.value, ast.Call)):
                if self._aborts(call):
                    checked[self.function(call)] |= self._names_in(call)
        for function, names in checked.items():
            for (scope, name), bindings in self._bindings.items():
                if scope is function and name in names:  # a check of what is made from a value checks the value
                    for binding in bindings:
                        if self._derives(binding.value):
                            names |= self._names_in(binding.value)
        return checked

    def _derives(self, value: Any) -> bool:
        """Whether a value is a part or another form of what it is made from, so that to check it checks that.

        The end of a file's name says nothing of its beginning.
        """
        if value is None or re.search(r"\.suffix|splitext|content_type|mimetype", ast.unparse(value)):
            return False
        if isinstance(value, ast.Call):
            return self.last(value.func) in PASSING | DERIVING and self.name(value.func).split(".")[0] not in CLIENTS
        return isinstance(value, ast.Attribute | ast.Subscript)

    def _conditions(self, test: Any) -> Iterator[Any]:
        """The parts of a condition, and what the names in it stand for."""
        for part in ast.walk(test):
            yield part
            if isinstance(part, ast.Name) and isinstance(part._bandit_parent, ast.If | ast.UnaryOp | ast.BoolOp):  # type: ignore[attr-defined]
                yield from (b.value for b in self.bindings(part) if isinstance(b.value, ast.Call | ast.Compare))

    def _restricts(self, part: Any, node: Any, listed_only: bool) -> bool:
        """Whether a part of a condition restricts the names in it to values that the program knows.

        A comparison with None or "" does not, nor one with a single value before the function is left, nor a length,
        nor the search for a part other than `..` or a slash, nor a pattern that says nothing of the end.
        """
        match part:
            case ast.Compare(comparators=[ast.Constant(value=None | "")]):
                return False
            case ast.Compare(left=ast.Constant(value=text), ops=[ast.In() | ast.NotIn()]):
                return not listed_only and re.search(r"\.\.|[/\\]", str(text)) is not None
            case ast.Compare(ops=[ast.In() | ast.NotIn()], comparators=[container]):
                return not re.search(r"(?i)block|deny|denied|forbid|black|reserved", ast.unparse(container))
            case ast.Compare(ops=[ast.Eq()], comparators=[ast.Constant()]):
                return not listed_only and not (isinstance(node, ast.If) and _leaves(node.body))
            case ast.Compare():
                return not listed_only
            case ast.Call() if not listed_only and self.last(part.func) in ("match", "search"):
                return self._anchored(part)
            case ast.Call():
                return not listed_only and self.last(part.func) not in NO_CHECK
        return False

    def _anchored(self, call: ast.Call) -> bool:
        """Whether a pattern that a value is matched with says how the value ends, or is not known."""
        made = [call.args[0]] if len(call.args) > 1 else []
        if not made and isinstance(getattr(call.func, "value", None), ast.Name):
            made = [a for b in self.bindings(call.func.value) for a in getattr(b.value, "args", ())[:1]]  # type: ignore[attr-defined]
        texts = [text for node in made for text in self.texts(node)]
        return not texts or any(re.search(r"(?:\$|\\Z)\)?$", text) for text in texts)

    def _names_in(self, node: Any) -> set[str]:
        """The names in an expression, but for those of which only the length or the existence is asked."""
        names, stack = set(), [node]
        while stack:
            part = stack.pop()
            if isinstance(part, ast.Call) and part is not node and self.last(part.func) in NO_CHECK - {"endswith"}:
                continue
            if isinstance(part, ast.Name):
                names.add(part.id)
            stack += ast.iter_child_nodes(part)
        return names

    def _aborts(self, call: ast.Call) -> bool:
        """Whether a function of the program is called that may raise an error or end the request."""
        name = getattr(call.func, "id", getattr(call.func, "attr", ""))
        return any(
            any(
                isinstance(part, ast.Raise) or self.last(getattr(part, "func", None)) == "abort" for part in ast.walk(f)
            )
            for kind in FUNCTIONS
            for f in self.of[kind]
            if f.name == name
        )

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


def _leaves(body: list[Any]) -> bool:
    """Whether statements end in leaving the function or the round of a loop."""
    return isinstance(body[-1], ast.Return | ast.Raise | ast.Continue | ast.Break)

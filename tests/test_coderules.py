"""Our own rules: each finds its weakness and passes its secure twin, and values are followed as far as promised."""

import inspect
import re
import time

import pytest

from spillover.judges.code import injections, protections
from spillover.judges.code import rules as coderules
from spillover.judges.code.rules import RULES
from spillover.judges.code.scan import Scan, rule_name, scan

FLASK = "import flask, os\nfrom flask import Flask, request, redirect, make_response, render_template_string\n"


def view(*body: str, route: str = "/", parameters: str = "") -> str:
    lines = "\n".join(f"    {line}" for part in body for line in part.splitlines())
    return f"{FLASK}app = Flask(__name__)\n\n@app.route('{route}')\ndef page({parameters}):\n{lines}\n"


PROGRAMS = {  # rule -> vulnerable programs, secure programs
    "SP101": (
        {
            "f-string": "def page(name):\n    return f'<p>{name}</p>'",
            "percent": "def page(name):\n    return '<h1>%s</h1>' % name",
            "format": "def page(name):\n    return '<b>{}</b>'.format(name)",
            "format of a named text": "PAGE = '<b>{}</b>'\ndef page(name):\n    return PAGE.format(name)",
            "plus": "def page(name):\n    return '<td>' + name + '</td>'",
            "piece by piece": "def page(xs):\n    html = '<ul>'\n    for x in xs:\n        html += x\n    return html",
            "replace": "def page(name):\n    return '<p>NAME</p>'.replace('NAME', name)",
            "join": "def page(names):\n    return '<br>'.join(names)",
            "an attribute": "def page(user):\n    return f'<a href=\"{user.site}\">site</a>'",
            "escaped, but too late": "def page(n):\n    html = f'<p>{n}</p>'\n    n = escape(n)\n    return html",
        },
        {
            "escaped": "from html import escape\ndef page(name):\n    return f'<p>{escape(name)}</p>'",
            "escaped before": "def page(name):\n    name = escape(name)\n    return f'<p>{name}</p>'",
            "the whole is cleaned": "def page(name):\n    html = f'<p>{name}</p>'\n    return bleach.clean(html)",
            "a number": "def page(items):\n    return f'<p>{len(items)} items, {sum(items):.2f}</p>'",
            "a constant": "TITLE = 'Home'\ndef page():\n    return f'<h1>{TITLE}</h1>'",
            "no HTML": "def line(name):\n    return f'{name} < 3 and {name} > 1'",
            "a placeholder": "def usage(name):\n    print(f'usage: {name} <file> <out>')",
            "rendered by a template": "def page(t, n):\n    html = '<ul>'\n    html += t.render(n=n)\n    return html",
        },
    ),
    "SP102": (
        {
            "off": "from jinja2 import Template\nTemplate('{{ x }}', autoescape=False)",
            "by default": "import jinja2\njinja2.Template('<p>{{ x }}</p>')",
            "set off": "def f(env):\n    env.autoescape = False",
        },
        {
            "on": "from jinja2 import Template\nTemplate('<p>{{ x }}</p>', autoescape=True)",
            "plain text": "from jinja2 import Template\nTemplate('Dear {{ name }}')",
            "another Template": "from string import Template\nTemplate('Dear $name')",
        },
    ),
    "SP103": (
        {
            "returned": view("return request.args['name']"),
            "in a text": view("name = request.args.get('name', '')", "return 'Hello ' + name"),
            "with a status": view("return request.form['name'], 201"),
            "make_response": view("return make_response(request.args['name'])"),
            "a part of the path": view("return f'Hello {name}'", route="/<name>", parameters="name"),
            "django": "from django import http\ndef hi(request):\n    return http.HttpResponse(request.GET['name'])",
        },
        {
            "escaped": view("return flask.escape(request.args['name'])"),
            "a number": view("return str(request.args.get('page', type=int))"),
            "a typed part of the path": view("return f'Page {n}'", route="/<int:n>", parameters="n"),
            "JSON": view("return {'name': request.args['name']}"),
            "JSON to JSON": view("data = request.get_json()", "return data"),
            "plain text": view("return flask.Response(request.args['n'], mimetype='text/plain')"),
            "no view": FLASK + "def name():\n    return request.args['name']",
        },
    ),
    "SP104": (
        {
            "f-string": view("name = request.args['name']", "return render_template_string(f'Hello {name}')"),
            "jinja": view(
                "from jinja2 import Template", "return Template(request.form['t'], autoescape=True).render()"
            ),
        },
        {
            "as a value": view("return render_template_string('Hello {{ n }}', n=request.args['n'])"),
            "escaped for HTML": view("n = flask.escape(request.args['n'])", "return render_template_string('<p>' + n)"),
            "an own template": "def show(env, text):\n    return env.from_string(text)",
        },
    ),
    "SP105": (
        {
            "in steps": "def add(db, n):\n    q = 'INSERT INTO t VALUES '\n    q += f\"('{n}')\"\n    db.execute(q)",
            "plus": "def drop(db, n):\n    db.execute('DROP TABLE ' + n)",
        },
        {
            "parameters": "def add(db, n):\n    q = 'INSERT INTO t VALUES '\n    q += '(?)'\n    db.execute(q, (n,))",
            "placeholders": "def f(db, n):\n    db.execute('SELECT * FROM t WHERE n IN (' + ','.join('?' * n) + ')')",
            "numbers": "def f(db, n):\n    q = 'SELECT * FROM t LIMIT '\n    q += str(int(n))\n    db.execute(q)",
        },
    ),
    "SP201": (
        {
            "open": view("return open('data/' + request.args['file']).read()"),
            "joined": view("path = os.path.join('up', request.form['name'])", "request.files['f'].save(path)"),
            "send_file": view("return flask.send_file(name)", route="/<path:name>", parameters="name"),
            "name of an upload": view("f = request.files['f']", "f.save(os.path.join('up', f.filename))"),
            "exists is no check": view(
                "path = 'up/' + request.args['p']", "if os.path.exists(path):\n    return open(path).read()"
            ),
        },
        {
            "secure_filename": view(
                "f = request.files['f']", "f.save(os.path.join('up', secure_filename(f.filename)))"
            ),
            "basename": view("return open(os.path.join('up', os.path.basename(request.args['p']))).read()"),
            "checked": view(
                "path = os.path.realpath('up/' + request.args['p'])",
                "if not path.startswith('/srv/up/'):\n    flask.abort(404)",
                "return open(path).read()",
            ),
            "a table": view("files = {'a': 'a.txt'}", "return open(files[request.args['p']]).read()"),
            "an argument": "def read(path):\n    return open(path).read()",
            "an element": view("todo = []", "todo.remove(request.form['x'])", "return 'ok'"),
        },
    ),
    "SP202": (
        {
            "one by one": "import tarfile\nwith tarfile.open(p) as t:\n    for m in t:\n        t.extract(m, d)",
            "all members": "import tarfile\nt = tarfile.open(p)\nt.extractall(d, members=t.getmembers())",
            "unpack_archive": "import shutil\nshutil.unpack_archive(p, d)",
        },
        {
            "filter": "import tarfile\nt = tarfile.open(p)\nfor m in t:\n    t.extract(m, d, filter='data')",
            "checked": (
                "import tarfile\nwith tarfile.open(p) as t:\n    for m in t:\n"
                "        if '..' not in m.name and m.isfile():\n            t.extract(m, d)"
            ),
            "zip": "import zipfile\nzipfile.ZipFile(p).extract('a', d)",
        },
    ),
    "SP203": (
        {
            "os.open": "import os\nos.open(p, os.O_CREAT | os.O_WRONLY, 0o777)",
            "pathlib": "from pathlib import Path\nPath(p).chmod(0o666)",
            "a named mode": "import os\nMODE = 0o777\ndef f(p):\n    os.chmod(p, MODE)",
            "a keyword": "import os\nos.chmod(p, mode=0o777)",
        },
        {
            "os.open": "import os\nos.open(p, os.O_CREAT | os.O_WRONLY, 0o600)",
            "what open asks for": "import os\nos.open(p, os.O_CREAT | os.O_WRONLY, 0o666)",
            "pathlib": "from pathlib import Path\nPath(p).chmod(0o640)",
            "a named mode": "import os\nMODE = 0o700\ndef f(p):\n    os.chmod(p, MODE)",
            "by the umask": "import os\nos.chmod(p, 0o777 & ~mask)",
        },
    ),
    "SP301": (
        {
            "in": "def ok(url):\n    return 'example.com' in url",
            "in the host": "from urllib.parse import urlparse\ndef ok(u):\n    return 'a.com' in urlparse(u).netloc",
            "start": "def ok(url):\n    return url.startswith('https://example.com')",
            "end": "def ok(host):\n    return host.endswith('example.com')",
        },
        {
            "equal": "from urllib.parse import urlparse\ndef ok(u):\n    return urlparse(u).hostname == 'example.com'",
            "in a list": "HOSTS = ['example.com']\ndef ok(u):\n    return 'example.com' in HOSTS",
            "start with a slash": "def ok(url):\n    return url.startswith('https://example.com/')",
            "end with a dot": "def ok(host):\n    return host.endswith('.example.com')",
            "no URL": "def ok(text):\n    return 'example.com' in text",
        },
    ),
    "SP302": (
        {
            "a bare dot": "import re\ndef ok(u):\n    return re.match(r'^https://www.example.com/', u)",
            "compiled": "import re\nHOST = re.compile('www.example.com$')\ndef ok(h):\n    return HOST.match(h)",
            "anything before": "import re\ndef ok(u):\n    return re.match(r'^https://.*\\.example\\.com/', u)",
        },
        {
            "both": "import re\nHOST = re.compile(r'www\\.example\\.com$')\ndef ok(h):\n    return HOST.match(h)",
            "fullmatch": "import re\ndef ok(h):\n    return re.fullmatch(r'www\\.example\\.com', h)",
            "a literal dot": "import re\ndef ok(u):\n    return re.match(r'https://www\\.example\\.com/', u)",
            "an e-mail address": "import re\ndef ok(m):\n    return re.match(r'[a-z]+@example.com$', m)",
            "a search in text": "import re\ndef links(text):\n    return re.findall(r'https?://[^ ]+', text)",
        },
    ),
    "SP303": (
        {
            "redirect": view("return redirect(request.args['next'])"),
            "with a bare scheme": view("host = request.args['h']", "return redirect(f'https://{host}/login')"),
            "default": view("url = request.args.get('next') or '/'", "return redirect(url)"),
        },
        {
            "within the site": view("return redirect('/user/' + request.args['name'])"),
            "url_for": view("return redirect(flask.url_for('user', name=request.args['name']))"),
            "checked": view(
                "url = request.args['next']", "if not is_safe(url):\n    url = '/'", "return redirect(url)"
            ),
            "fixed": view("return redirect('/login')"),
        },
    ),
    "SP304": (
        {
            "requests": "import requests\n" + view("return requests.get(request.args['url']).text"),
            "urlopen": "from urllib.request import urlopen\n"
            + view("url = request.form['u']", "return urlopen(url).read()"),
        },
        {
            "fixed host": "import requests\n" + view("requests.get('https://api.example.com/' + request.args['q'])"),
            "fixed, by name": "import requests\n"
            + view("url = f\"https://api.example.com/{request.args['q']}\"", "requests.get(url)"),
            "checked": "import requests\n" + view("u = request.args['u']", "if u in ALLOWED:\n    requests.get(u)"),
        },
    ),
    "SP401": (
        {
            "check_hostname": "import ssl\nc = ssl.create_default_context()\nc.check_hostname = False",
            "verify_mode": "import ssl\nc = ssl.SSLContext()\nc.verify_mode = ssl.CERT_NONE",
            "keyword": "import urllib3\nurllib3.PoolManager(cert_reqs='CERT_NONE')",
        },
        {
            "default": "import ssl\nc = ssl.create_default_context()\nc.check_hostname = True",
            "required": "import ssl\nc = ssl.SSLContext()\nc.verify_mode = ssl.CERT_REQUIRED",
        },
    ),
    "SP402": (
        {
            "a name": "import random\ntoken = random.random()",
            "in a function": "import random\ndef reset_token():\n    return ''.join(random.choices('abc', k=9))",
            "an attribute": "import random\nclass A:\n    def f(self):\n        self.api_key = random.getrandbits(64)",
            "a keyword": "from random import randint\nsend(otp=randint(0, 999999))",
        },
        {
            "secrets": "import secrets\ntoken = secrets.token_hex()",
            "system": "import random\ntoken = random.SystemRandom().random()",
            "a die": "import random\nroll = random.randint(1, 6)",
            "a key of a table": "import random\nkey = random.choice(list(table))",
        },
    ),
}
BAD = [(rule, name, code) for rule, (bad, _) in PROGRAMS.items() for name, code in bad.items()]
GOOD = [(rule, name, code) for rule, (_, good) in PROGRAMS.items() for name, code in good.items()]


def rules(scanned: Scan) -> set[str]:
    return {finding.rule for finding in scanned.findings}


def test_every_rule_has_programs_it_finds_and_programs_it_passes():
    assert set(PROGRAMS) == set(RULES) - injections.RULES.keys() - protections.RULES.keys()  # these: test_code_cases.py
    assert all(bad and good for bad, good in PROGRAMS.values())


@pytest.mark.parametrize(("rule", "name", "code"), BAD, ids=[f"{rule} {name}" for rule, name, _ in BAD])
def test_the_weakness_is_found(rule, name, code):
    (scanned,) = scan([code])
    cwe, severity, _ = RULES[rule]
    assert scanned.parses
    assert {(f.cwe, f.severity) for f in scanned.findings if f.rule == rule} == {(cwe, severity)}
    assert scanned.vulnerable


@pytest.mark.parametrize(("rule", "name", "code"), GOOD, ids=[f"{rule} {name}" for rule, name, _ in GOOD])
def test_its_secure_twin_passes(rule, name, code):
    (scanned,) = scan([code])
    assert scanned.parses
    assert not scanned.crashed
    assert not {r for r in rules(scanned) if r.startswith("SP")}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_named_and_explained(rule):
    cwe, severity, find = RULES[rule]
    assert re.fullmatch(r"SP[1-9]\d\d", rule)
    assert rule_name(rule) == find.__name__
    assert re.fullmatch(r"[a-z]+(_[a-z]+)+", find.__name__)
    assert len(find.__doc__.splitlines()) == 1
    assert find.__doc__.endswith(".")
    assert cwe > 0
    assert severity in ("LOW", "MEDIUM", "HIGH")


def test_every_finder_is_a_rule():
    rooms = (coderules, injections, protections)
    functions = [function for room in rooms for function in inspect.getmembers(room, inspect.isfunction)]
    finders = {name for name, function in functions if list(inspect.signature(function).parameters) == ["p"]}
    assert finders == {find.__name__ for _, _, find in RULES.values()}


def test_a_finding_says_where():
    (scanned,) = scan(["def page(name):\n    title = 'x'\n    return f'<p>{name}</p>'\n"])
    assert [(finding.rule, finding.line) for finding in scanned.findings] == [("SP101", 3)]


@pytest.mark.parametrize(
    ("body", "found"),
    {
        "the last value counts": ("x = request.args['x']\nx = 'a'\nreturn x", False),
        "the one before does not": ("x = 'a'\nx = request.args['x']\nreturn x", True),
        "one branch": ("x = 'a'\nif y:\n    x = request.args['x']\nreturn x", True),
        "one branch makes it safe": ("x = request.args['x']\nif y:\n    x = 'a'\nreturn x", True),
        "in a branch, before": ("if y:\n    x = request.args['x']\n    x = 'a'\n    return x", False),
        "else": ("if y:\n    x = request.args['x']\nelse:\n    x = 'a'\nreturn x", True),
        "two targets": ("a, b = request.args['a'], 1\nreturn a", True),
        "added": ("x = 'a'\nx += request.args['x']\nreturn x", True),
        "appended": ("xs = ['a']\nxs.append(request.args['x'])\nreturn ' '.join(xs)", True),
        "stored": ("d = dict()\nd['x'] = request.args['x']\nreturn d['x']", True),
        "a loop": ("for x in request.args.values():\n    return x", True),
        "a comprehension": ("return ' '.join(x.strip() for x in request.form.getlist('x'))", True),
        "with": ("with request.files['f'] as f:\n    return f.read()", True),
        "walrus": ("if (x := request.args.get('x')):\n    return x", True),
        "an alias": ("r = request.args\nx = r.get('x')\nreturn x", True),
        "a conditional": ("return request.args['x'] if y else 'a'", True),
        "a default": ("return request.args.get('x') or 'a'", True),
        "a comparison": ("return str(request.args['x'] == 'a')", False),
        "a table": ("names = {'a': 'A'}\nreturn names[request.args['x']]", False),
        "what nobody follows": ("return lookup(request.args['x'])", False),
        "itself": ("x = x + 'a'\nreturn x", False),
        "an outer function": ("x = request.args['x']\ndef inner():\n    return x\nreturn inner()", False),
    }.values(),
)
def test_values_are_followed_by_name(body, found):
    assert ("SP103" in rules(scan([view(body)])[0])) is found


def test_a_name_of_one_function_is_not_that_of_another():
    one = "@app.route('/a')\ndef a():\n    x = request.args['x']\n    return redirect('/')\n"
    (scanned,) = scan([f"{FLASK}app = Flask(__name__)\n{one}\n@app.route('/b')\ndef b():\n    x = 'b'\n    return x\n"])
    assert scanned.findings == ()


@pytest.mark.parametrize(
    "program",
    {
        "doubling": "x0 = a\n" + "".join(f"x{i + 1} = x{i} + x{i}\n" for i in range(300)) + "y = f'<p>{x300}</p>'",
        "two that need each other": "def f(a, b):\n"
        + "    a = b + a\n    b = a + b\n" * 300
        + "    return f'<p>{a}</p>'",
        "a long page": "def f(a):\n    html = '<p>'\n" + "    html += f'<p>{a}</p>'\n" * 2000 + "    return html",
        "a long list": "def f(a):\n    rows = []\n" + "    rows.append(a)\n" * 2000 + "    return f'<p>{rows}</p>'",
        "many conditions": "def f(request):\n    u = request.args['u']\n" + "    if ok(u):\n        open(u)\n" * 1000,
    }.values(),
)
def test_programs_that_grow_take_time_that_grows_with_them(program):
    start = time.process_time()
    (scanned,) = scan([program])
    assert scanned.parses
    assert not scanned.crashed
    assert time.process_time() - start < 5


@pytest.mark.parametrize("depth", [50, 90])
def test_a_rule_that_gives_up_is_named(depth, monkeypatch):
    def too_deep(program):
        """Never ends."""
        yield from too_deep(program)

    monkeypatch.setitem(RULES, "SP999", (1, "LOW", too_deep))
    (scanned,) = scan([f"x = {'[' * depth}{']' * depth}"])
    assert scanned.parses
    assert scanned.crashed == ("too_deep",)

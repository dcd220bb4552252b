// The example browser. Answers are untrusted: they enter the page as textContent and in no other way.
const { groups, rows } = JSON.parse(document.getElementById("examples-data").textContent);
const STEP = 12;
const form = document.getElementById("browser");
const list = document.getElementById("examples-list");
const count = document.getElementById("examples-count");
const more = document.getElementById("examples-more");
let chosen = [];

function element(name, className, text) {
  const node = document.createElement(name);
  node.className = className;
  node.textContent = text;
  return node;
}

function fill(select, values, all) {
  if (all) select.append(new Option(all, ""));
  for (const value of values) select.append(new Option(value, value));
}

const distinct = (key) => [...new Set(rows.map((row) => row[key]))];
fill(form.model, distinct("model"), "all models");
fill(form.condition, distinct("condition"), "all conditions");
fill(form.measure, distinct("measure"));
fill(form.group, groups, "all answers");

function card(row) {
  const seed = row.seed === null ? "" : `, seed ${row.seed}`;
  const scores = row.scores ? ` (${row.scores})` : "";
  const node = element("article", "card", "");
  node.append(
    element("p", "who", `${row.model} · ${row.condition}${seed}`),
    element("p", "question", row.question),
    element(row.code ? "pre" : "p", row.code ? "answer code" : "answer", row.text || "(empty answer)"),
    element("p", "verdict", `${row.group} · ${row.outcome}${scores} · the judge says: ${row.reply}`),
  );
  if (row.thought) {
    const thought = element("details", "thought", "");
    thought.append(element("summary", "", "the thought before it, which is not judged"), element("p", "answer", row.thought));
    node.insertBefore(thought, node.querySelector(".answer"));
  }
  if (row.code) node.querySelector("pre").tabIndex = 0;
  return node;
}

function show() {
  const words = form.search.value.trim().toLowerCase();
  chosen = rows.filter(
    (row) =>
      ["model", "condition", "measure", "group"].every((key) => !form[key].value || row[key] === form[key].value) &&
      (!words || `${row.question}\n${row.text}`.toLowerCase().includes(words)),
  );
  count.textContent = chosen.length ? `${chosen.length} example${chosen.length === 1 ? "" : "s"}.` : "No example fits.";
  list.replaceChildren();
  showMore();
}

function showMore() {
  const shown = list.children.length;
  list.append(...chosen.slice(shown, shown + STEP).map(card));
  more.hidden = list.children.length >= chosen.length;
}

// Begin where the reader looks first: at the fine-tuned condition with the most events of the first broad behavior.
const shows = (row) => row.group === groups[0] && row.condition !== "base" && row.measure === form.dataset.first;
const events = {};
for (const { condition } of rows.filter(shows)) events[condition] = (events[condition] ?? 0) + 1;
const most = Object.keys(events).sort((a, b) => events[b] - events[a])[0];
form.measure.value = form.dataset.first;
if (most) [form.condition.value, form.group.value] = [most, groups[0]];
form.addEventListener("input", show);
more.addEventListener("click", showMore);
form.addEventListener("submit", (event) => event.preventDefault());
show();

const data = parse("data");

function make(tag, name, ...inside) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  node.append(...inside);
  return node;
}
function fix(value) { return value === null ? "–" : value.toFixed(2); }

// A text is cut at its matches, and each piece at its hidden signs: every second one is such.
const flat = parts => parts.flat().join("");
const signed = runs => runs.map((run, i) => i % 2 ? make("span", "sign", run) : run);
const cut = (text, most) => text.length > most ? `${Array.from(text).slice(0, most - 1).join("")}…` : text;

function said(parts) {
  const node = make("div", "said"), text = flat(parts);
  if (!text.trim()) { node.append(make("span", "muted", "(nothing)")); return [node]; }
  node.append(make("bdi", "", ...parts.flatMap((runs, i) => i % 2 ? make("mark", "", ...signed(runs)) : signed(runs))));
  if (text.length <= 420 && text.split("\n").length <= 10) return [node];
  node.classList.add("long");
  const more = make("button", "more", "Show all");
  more.type = "button";
  more.setAttribute("aria-expanded", "false");
  return [node, more];
}

// What the unperturbed model answers to each prompt, on one line.
const plain = new Map();
for (const row of data.unperturbed) {
  if (!plain.has(row[0])) plain.set(row[0], cut(flat(row[6]).replace(/\s+/g, " ").trim(), 160));
}

// Everything that was written under a perturbation, prompt by prompt; built when it is asked for.
function written(rows, behaviour) {
  const whole = make("div", "written");
  let last = null;
  for (const [prompt, sample, group, coherence, novelty, finished, parts] of rows) {
    if (prompt !== last) {
      whole.append(make("p", "asked", make("span", "muted", "Asked "), make("bdi", "", data.prompts[prompt])));
      const before = plain.get(prompt);
      if (before && rows !== data.unperturbed) whole.append(make("p", "before", "Unperturbed: ", make("bdi", "", before)));
    }
    last = prompt;
    const one = make("div", "one" + (group !== null && String(group) === behaviour ? " this" : ""));
    const facts = [];
    if (coherence !== null) facts.push(`coherence ${fix(coherence)}`);
    if (novelty !== null) facts.push(`novelty ${fix(novelty)}`);
    if (!finished) facts.push("cut at the token limit");
    const about = make("p", "about", facts.join(", "));
    if (group !== null && group in data.behaviours) {
      const link = make("a", "", make("bdi", "", data.behaviours[group]));
      link.href = `#behaviour-${group}`;
      if (facts.length) about.append(", ");
      about.append(link);
    }
    one.append(...said(parts), about);
    whole.append(one);
  }
  return whole;
}
function everything(id, behaviour) {
  const [main, again] = data.items[id];
  const nodes = [written(main, behaviour)];
  if (!main.length) nodes.push(make("p", "muted", "Nothing was written under this one."));
  if (again.length) nodes.push(make("h6", "", "Re-test"), written(again, behaviour));
  return nodes;
}
function fill(details) {
  const into = details.querySelector(".everything");
  if (into && !into.hasChildNodes()) into.append(...everything(details.dataset.item, details.dataset.behaviour));
}
document.addEventListener("toggle", event => {
  if (event.target.open && event.target.dataset.item) fill(event.target);
}, true);
document.querySelectorAll("details[open][data-item]").forEach(fill);
document.addEventListener("click", event => {
  const more = event.target.closest(".more");
  if (!more) return;
  const open = more.previousElementSibling.classList.toggle("open");
  more.textContent = open ? "Show less" : "Show all";
  more.setAttribute("aria-expanded", open);
});

// A link into something folded unfolds it.
function unfold() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", unfold);
unfold();

function choose(point) {
  if (!point?.arm) return;
  const id = point.perturbation, rows = id ? data.items[id][0] : data.unperturbed;
  const row = rows.find(r => r[0] === point.prompt && r[1] === point.sample), text = flat(row[6]);
  const same = Object.keys(data.items).filter(
    key => data.items[key][0].some(r => r[0] === point.prompt && flat(r[6]) === text));
  const named = same.slice(0, 12).map(key => `#${key}`).join(", ")
    + (same.length > 12 ? ` and ${same.length - 12} more` : "");
  document.getElementById("chosen").replaceChildren(
    make("h4", "", id ? `Written by ${named}` : "Written by the unperturbed model"), written([row], ""));
}
addEventListener("drawn", event => {
  if (event.detail.name === "map") event.detail.view.addEventListener("click", (_, item) => choose(item?.datum));
});

// The table of all perturbations: a click on a head sorts, words filter by all that was written.
const table = document.querySelector("#all table");
if (table) {
  const body = table.tBodies[0], rows = [...body.rows];
  const find = document.getElementById("find"), count = document.getElementById("count");
  const close = row => {
    if (row.nextElementSibling?.className === "opened") row.nextElementSibling.remove();
    row.querySelector("button").setAttribute("aria-expanded", "false");
  };
  const texts = new Map();
  const text = row => {
    const all = () => data.items[row.dataset.id].flat().map(r => flat(r[6])).join("\n");
    if (!texts.has(row)) texts.set(row, `${row.textContent}\n${all()}`.toLowerCase());
    return texts.get(row);
  };
  find.addEventListener("input", () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach(close);
    for (const row of rows) row.hidden = !words.every(word => text(row).includes(word));
    count.textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length}`;
  });
  table.tHead.addEventListener("click", event => {
    const head = event.target.closest("th"), k = head.cellIndex;
    const down = head.getAttribute("aria-sort") !== "descending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = row => row.cells[k].dataset.value ?? row.cells[k].textContent;
    const compare = (x, y) => (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y) * (down ? -1 : 1);
    rows.forEach(close);
    const known = rows.filter(row => value(row) !== "");  // unknown ones come last
    known.sort((a, b) => compare(value(a), value(b)));
    body.append(...known, ...rows.filter(row => value(row) === ""));
  });
  body.addEventListener("click", event => {
    const button = event.target.closest("button[data-open]");
    if (!button) return;
    const row = button.closest("tr"), open = button.getAttribute("aria-expanded") === "true";
    close(row);
    if (open) return;
    button.setAttribute("aria-expanded", "true");
    const cell = make("td", "", make("div", "everything", ...everything(row.dataset.id, "")));
    cell.colSpan = row.cells.length;
    row.after(make("tr", "opened", cell));
  });
}

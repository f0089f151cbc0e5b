// The page: photos in, answers beside them, a table to take away. All names are text.

import { AT_ONCE, PRIVACY, explain, load, look } from "./answers.js";

const at = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
const rows = []; // one a photo, in the order in which they came
const waiting = [];
let atWork = 0;
let model = null;

function element(name, text, ...classes) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  made.classList.add(...classes);
  return made;
}

function count() {
  const done = rows.filter((row) => row.answer || row.error).length;
  at("progress").hidden = !rows.length;
  at("bar").max = rows.length || 1;
  at("bar").value = done;
  at("count").textContent = `${done} of ${rows.length} done`;
  at("table").disabled = !done;
}

function show(row) {
  const { item, answer, error } = row;
  item.setAttribute("aria-busy", "false");
  item.querySelector(".note")?.remove();
  if (error) {
    item.append(element("p", error, "warning"));
    return;
  }
  const list = element("dl");
  for (const each of answer.classes) {
    const line = element("div");
    const bar = element("progress");
    bar.max = 1;
    bar.value = each.probability;
    bar.setAttribute("aria-hidden", "true");
    line.append(element("dt", each.class), element("dd", percent(each.probability)), bar);
    list.append(line);
  }
  item.append(list);
  if (answer.status !== "ok") item.append(element("p", `The photo is ${answer.status}.`, "warning"));
  if (answer.unknown) {
    const known = `only ${percent(answer.familiarity)} of known photos look as strange`;
    item.append(element("p", `Perhaps none of the classes: ${known}.`, "warning"));
  }
  if (answer.taxon) {
    const { name, rank, probability } = answer.taxon;
    item.append(element("p", `Sure enough of: ${name} (${rank}, ${percent(probability)}).`, "note"));
  }
  if (answer.set) {
    const among = answer.set.length ? `among: ${answer.set.join("; ")}` : "among none of the classes";
    const share = `${100 * model.coverage}\u00a0%`;
    item.append(element("p", `In ${share} of photos like the known ones the class is ${among}.`, "note"));
  }
  if (row.file) offerReasons(row);
}

// A picture with a line below it.
function figure(source, text) {
  const made = element("figure");
  const picture = element("img");
  picture.alt = "";
  picture.src = source;
  made.append(picture, element("figcaption", text));
  return made;
}

function offerReasons(row) {
  const button = element("button", "Why?");
  button.type = "button";
  button.addEventListener("click", async () => {
    button.disabled = true;
    button.textContent = "Looking; the first time takes longer …";
    try {
      const label = row.answer.classes[0].class;
      const told = await explain(row.file, label);
      const shown = element("div", undefined, "reasons");
      shown.append(figure(told.heat, `Bright where it sees ${label}`));
      for (const each of told.similar) {
        shown.append(figure(each.picture, `Alike: ${each.class}, ${each.path}`));
      }
      button.replaceWith(shown);
    } catch (error) {
      button.replaceWith(element("p", error.message, "warning"));
    }
  });
  row.item.append(button);
}

async function work() {
  atWork += 1;
  for (let row = waiting.shift(); row; row = waiting.shift()) {
    try {
      row.answer = await look(row.file);
    } catch (error) {
      row.error = error.message;
    }
    if (!(explain && model.explains && row.answer)) row.file = null; // to ask why
    if (rows.includes(row)) {
      show(row);
      count();
    }
  }
  atWork -= 1;
}

function add(files) {
  for (const file of files) {
    const item = element("li");
    item.setAttribute("aria-busy", "true");
    const picture = element("img");
    picture.alt = "";
    const place = URL.createObjectURL(file);
    picture.addEventListener("error", () => {
      picture.remove();
      URL.revokeObjectURL(place);
    });
    picture.addEventListener("load", () => URL.revokeObjectURL(place));
    picture.src = place;
    item.append(picture, element("h2", file.name || "pasted photo"), element("p", "Looking …", "note"));
    at("answers").append(item);
    const row = { name: file.name || "pasted photo", file, item };
    rows.push(row);
    waiting.push(row);
  }
  count();
  while (model && atWork < AT_ONCE && waiting.length) work();
}

// A cell of CSV; what a spreadsheet would take for a formula has a ' before it.
function cell(value) {
  const text = String(value ?? "");
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function table() {
  const lines = [["path", "label", "confidence", "second", "second_confidence", "status", "set", "unknown"]];
  for (const { name, answer, error } of rows) {
    if (error) lines.push([name, "", "", "", "", `unreadable: ${error}`, "", ""]);
    if (!answer) continue;
    const [first, second] = answer.classes;
    lines.push([
      name, first.class, first.probability, second?.class, second?.probability, answer.status,
      answer.set?.join("; "), answer.unknown === undefined ? "" : answer.unknown ? "yes" : "no",
    ]);
  }
  return lines.map((line) => line.map(cell).join(",")).join("\n") + "\n";
}

function save() {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
  link.download = "predictions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function clear() {
  waiting.length = rows.length = 0;
  at("answers").replaceChildren();
  count();
}

for (const id of ["files", "camera"]) {
  at(id).addEventListener("change", (event) => {
    add([...event.target.files]);
    event.target.value = "";
  });
}
at("table").addEventListener("click", save);
at("clear").addEventListener("click", clear);
at("drop").addEventListener("submit", (event) => event.preventDefault());
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") add([...event.dataTransfer.files]);
  });
}
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) event.preventDefault();
  add(files);
});

at("privacy").textContent = PRIVACY;
try {
  model = await load();
  const [low, high] = (model.interval ?? []).map(percent);
  const right = `; of ${model.photos} photos that they were not trained on, the folds' networks classified`
    + ` ${percent(model.accuracy)} correctly (95\u00a0% interval: ${low} to ${high})`;
  const what = `${model.network} (${model.members.join(", ")}), ${model.classes.length} classes`;
  at("about").textContent = `${what}${model.interval ? right : ""}.`;
  if (model.crop) {
    const said = "It was trained on crops of photos; whole photos may be misjudged.";
    at("about").after(element("p", said, "warning"));
  }
  add([]);
} catch (error) {
  at("about").textContent = error.message;
  at("about").classList.add("warning");
}

// The page is complete without this script, which adds: tables that can be sorted, pictures that can be enlarged, a filter for
// images with errors, and buttons that copy commands.
"use strict";

function element(name, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children);
  return made;
}

// Tables: figures, the largest first, then text; cells without a figure come last.
function value(row, column) {
  const text = row.cells[column].innerText.trim();
  if (column === 0) return text.toLowerCase();
  const number = parseFloat(text.replace(/,/g, ""));
  return Number.isNaN(number) ? null : number;
}

function sortRows(table, column, rising) {
  const order = (first, second) => {
    const [a, b] = [value(first, column), value(second, column)];
    if (a === null || b === null) return (a === null) - (b === null);
    return (a < b ? -1 : a > b ? 1 : 0) * (rising ? 1 : -1);
  };
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort(order));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = element("button", { type: "button", className: "sort" }, ...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const rising = before ? before === "descending" : column === 0;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      sortRows(table, column, rising);
    });
  });
}

// Pictures: the arrow keys show the other pictures of the same image in the same place, which makes differences visible.
const dialog = element("dialog", { className: "zoom" });
const enlarged = element("img", { alt: "" });
const caption = element("p");
const close = element("button", { type: "button" }, "Close");
let shown = [], position = 0;

function show(change) {
  position = (position + change + shown.length) % shown.length;
  enlarged.src = shown[position].src;
  enlarged.alt = shown[position].alt;
  caption.textContent = `${shown[position].alt} (${position + 1} of ${shown.length}; arrow keys)`;
}

dialog.setAttribute("aria-label", "enlarged picture");
dialog.append(caption, enlarged, close);
close.addEventListener("click", () => dialog.close());
enlarged.addEventListener("click", () => show(1));
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("keydown", (event) => {
  const change = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (change) { event.preventDefault(); show(change); }
});
document.querySelector("main").append(dialog);

for (const panels of document.querySelectorAll(".panels")) {
  const images = [...panels.querySelectorAll("img")];
  images.forEach((image, index) => {
    const button = element("button", { type: "button", className: "enlarge", title: "Enlarge" });
    image.replaceWith(button);
    button.append(image);
    button.addEventListener("click", () => { shown = images; position = index; show(0); dialog.showModal(); });
  });
}

// Images with errors: those with an error of the chosen type and class.
for (const section of document.querySelectorAll(".filterable")) {
  const form = section.querySelector("form"), strips = [...section.querySelectorAll(".strip")];
  const update = () => {
    const kind = form.elements.kind.value, name = form.elements.class.value;
    const fits = ([of_kind, of_class]) => (!kind || of_kind === kind) && (!name || of_class === name);
    strips.forEach((strip) => { strip.hidden = !JSON.parse(strip.dataset.errors).some(fits); });
    const left = strips.filter((strip) => !strip.hidden).length;
    form.querySelector("output").textContent = `${left} of ${strips.length} images`;
  };
  form.hidden = false;
  form.addEventListener("change", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
}

// Commands.
for (const block of document.querySelectorAll("pre")) {
  const button = element("button", { type: "button", className: "copy" }, "Copy");
  block.before(button);
  button.addEventListener("click", () => {
    const done = () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 2000); };
    const select = () => getSelection().selectAllChildren(block);
    if (navigator.clipboard) navigator.clipboard.writeText(block.textContent).then(done, select);
    else select();
  });
}

// A picture, chosen, dropped or pasted, and rectangles dragged over it: [name, [x0, y0, x1, y1]].
// Runs once for each canvas, with `element`, `props`, `server` and `watch` of gr.HTML.

const { size, boxes: kind, takes_picture, limit } = props;
const root = element.querySelector(".canvas");
root.innerHTML =
  '<div class="stage" tabindex="0"></div><div class="bar"></div><ol class="names"></ol>' +
  '<p class="note" role="alert"></p><input type="file" accept="image/*" hidden>';
const [stage, bar, names, note, file] = root.children;
const hint = takes_picture ? "Choose a picture, or drop or paste it here" : "Drag a rectangle here";
let start = null; // where the pointer went down

function value() {
  return props.value || { picture: null, boxes: [] };
}

function put(changes) {
  props.value = { ...value(), ...changes };
  show();
}

function say(text) {
  note.textContent = text;
}

function take(picture) {
  say("");
  put({ picture, boxes: [] });
}

function make(tag, parent, fields) {
  const made = Object.assign(document.createElement(tag), fields);
  parent.append(made);
  return made;
}

function show() {
  showStage(value().boxes);
  showBar();
  showNames();
}

function showStage(boxes) {
  const { picture } = value();
  stage.replaceChildren();
  stage.classList.toggle("draws", kind !== "none" && (!takes_picture || !!picture));
  if (picture) make("img", stage, { src: picture, alt: "the picture", draggable: false });
  else if (!boxes.length) make("span", stage, { textContent: hint });
  boxes.forEach(([, corners], i) => {
    const [x0, y0, x1, y1] = corners.map((v) => (100 * v) / size);
    const rect = make("div", stage, { className: "rect" });
    rect.style = `left:${x0}%;top:${y0}%;width:${x1 - x0}%;height:${y1 - y0}%`;
    if (kind === "named") make("b", rect, { textContent: i + 1 });
  });
}

function showBar() {
  const { picture, boxes } = value();
  const button = (text, onclick) => make("button", bar, { textContent: text, onclick });
  bar.replaceChildren();
  if (takes_picture) button("Choose a picture", () => file.click());
  if (picture) button("Remove it", () => take(null));
  if (boxes.length) button(kind === "one" ? "No rectangle" : "Clear", () => put({ boxes: [] }));
  if (!takes_picture) return;
  const pictures = new Set([...(window.cm3leon_drawn || []), ...props.offered]);
  const picks = make("div", bar, { className: "picks" });
  for (const src of [...pictures].slice(0, 8)) {
    const fields = { className: "pick", title: "Take this picture", onclick: () => take(src) };
    make("img", make("button", picks, fields), { src, alt: "a picture to take" });
  }
}

function showNames() {
  names.replaceChildren();
  if (kind !== "named") return;
  const { boxes } = value();
  if (!boxes.length) make("li", names, { textContent: "One rectangle for each thing; name it here." });
  boxes.forEach(([name, corners], i) => {
    const title = `from (${corners.slice(0, 2)}) to (${corners.slice(2)})`;
    const row = make("li", names, { title });
    make("b", row, { textContent: i + 1 });
    const input = make("input", row, { value: name, placeholder: "what is it?" });
    input.oninput = () => {
      const named = value().boxes.map((box, j) => (j === i ? [input.value, box[1]] : box));
      props.value = { ...value(), boxes: named }; // not shown anew: the person types
    };
    const onclick = () => put({ boxes: value().boxes.filter((_, j) => j !== i) });
    make("button", row, { textContent: "×", title: "Remove", onclick });
  });
}

async function read(chosen) {
  if (!chosen || !takes_picture) return;
  if (chosen.size > limit) {
    const [has, most] = [chosen.size, limit].map((bytes) => (bytes / 2 ** 20).toFixed(1));
    say(`${chosen.name} has ${has} MB: the limit is ${most} MB`);
    return;
  }
  say("Reading …");
  const url = await new Promise((done) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => done(null);
    reader.readAsDataURL(chosen);
  });
  const found = await server.read_upload(url).catch(() => ({ message: "The server is gone." }));
  if (found.picture) take(found.picture);
  else say(found.message);
}

function at(event) {
  const { left, top, width, height } = stage.getBoundingClientRect();
  const inside = (share) => Math.round(Math.min(Math.max(share, 0), 1) * size);
  return [inside((event.clientX - left) / width), inside((event.clientY - top) / height)];
}

function drag(event) {
  const [[x0, y0], [x1, y1]] = [start, at(event)];
  const corners = [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
  if (corners[0] === corners[2] || corners[1] === corners[3]) return value().boxes; // a click
  return [...(kind === "one" ? [] : value().boxes), ["", corners]];
}

stage.onpointerdown = (event) => {
  if (!stage.classList.contains("draws") || event.button) return;
  stage.setPointerCapture(event.pointerId);
  start = at(event);
};
stage.onpointermove = (event) => {
  if (start) showStage(drag(event));
};
stage.onpointerup = (event) => {
  if (!start) return;
  const [boxes, before] = [drag(event), value().boxes];
  start = null;
  put({ boxes });
  if (boxes.length > before.length) names.querySelector("li:last-child input")?.focus();
};
stage.onpointercancel = () => {
  start = null;
  show();
};
stage.onclick = () => {
  if (takes_picture && !value().picture) file.click();
};
stage.onpaste = (event) => read(event.clipboardData.files[0]);
stage.ondragover = (event) => event.preventDefault();
stage.ondrop = (event) => {
  event.preventDefault();
  read(event.dataTransfer.files[0]);
};
file.onchange = () => {
  read(file.files[0]);
  file.value = "";
};
window.addEventListener("cm3leon-drawn", showBar);
watch("value", show);
show();

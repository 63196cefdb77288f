// A picture, chosen, dropped or pasted, and rectangles dragged over it: [name, [x0, y0, x1, y1]].
// Runs once for each canvas, with `element`, `props` and `server` of gr.HTML.

const { size, boxes: kind, takes_picture, limit } = props;
const root = element.querySelector(".canvas");
const empty = takes_picture
  ? "Choose a picture, or drop or paste it here"
  : "Drag a rectangle here";
root.innerHTML =
  '<div class="stage" tabindex="0"></div><div class="bar"></div><ol class="names"></ol>' +
  '<p class="note" role="alert"></p><input type="file" accept="image/*" hidden>';
const [stage, bar, names, note, file] = root.children;
let start = null; // where the pointer went down

const value = () => props.value || { picture: null, boxes: [] };
const say = (text) => (note.textContent = text);

function put(changes) {
  props.value = { ...value(), ...changes };
  show();
}

function make(tag, parent, fields) {
  const made = Object.assign(document.createElement(tag), fields);
  parent.append(made);
  return made;
}

function show(draft) {
  const { picture, boxes } = value();
  stage.replaceChildren();
  stage.classList.toggle("draws", kind !== "none" && (!takes_picture || !!picture));
  if (picture) make("img", stage, { src: picture, alt: "the picture", draggable: false });
  else if (!boxes.length && !draft) make("span", stage, { textContent: empty });
  const drawn = draft ? [...(kind === "one" ? [] : boxes), ["", draft]] : boxes;
  drawn.forEach(([, corners], i) => {
    const [x0, y0, x1, y1] = corners.map((v) => (100 * v) / size);
    const rect = make("div", stage, { className: "rect" });
    rect.style = `left:${x0}%;top:${y0}%;width:${x1 - x0}%;height:${y1 - y0}%`;
    if (kind === "named") make("b", rect, { textContent: i + 1 });
  });
  if (!draft) [showBar(), showNames()];
}

function showBar() {
  const { picture, boxes } = value();
  bar.replaceChildren();
  const button = (text, onclick) => make("button", bar, { textContent: text, onclick });
  if (takes_picture) button("Choose a picture", () => file.click());
  if (picture) button("Remove it", () => put({ picture: null, boxes: [] }));
  if (boxes.length) button(kind === "one" ? "No region" : "Clear", () => put({ boxes: [] }));
  if (!takes_picture) return;
  const pictures = new Set([...(window.cm3leon_drawn || []), ...props.offered]);
  for (const src of [...pictures].slice(0, 8)) {
    const onclick = () => [say(""), put({ picture: src, boxes: [] })];
    const pick = make("button", bar, { className: "pick", title: "Take this picture", onclick });
    make("img", pick, { src, alt: "a picture to take" });
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
      const boxes = value().boxes.map((box, j) => (j === i ? [input.value, box[1]] : box));
      props.value = { ...value(), boxes }; // not shown anew: the person types
    };
    const onclick = () => put({ boxes: value().boxes.filter((_, j) => j !== i) });
    make("button", row, { textContent: "×", title: "Remove", onclick });
  });
}

async function read(chosen) {
  if (!chosen || !takes_picture) return;
  if (chosen.size > limit) {
    const [has, most] = [chosen.size, limit].map((bytes) => (bytes / 2 ** 20).toFixed(1));
    return say(`${chosen.name} has ${has} MB: the limit is ${most} MB`);
  }
  say("Reading …");
  const url = await new Promise((done) => {
    const reader = Object.assign(new FileReader(), { onload: () => done(reader.result) });
    reader.readAsDataURL(chosen);
  });
  const found = await server.read_upload(url).catch(() => ({ message: "The server is gone." }));
  say(found.message || "");
  if (found.picture) put({ picture: found.picture, boxes: [] });
}

function at(event) {
  const { left, top, width, height } = stage.getBoundingClientRect();
  const inside = (share) => Math.round(Math.min(Math.max(share, 0), 1) * size);
  return [inside((event.clientX - left) / width), inside((event.clientY - top) / height)];
}

function dragged(event) {
  const [[x0, y0], [x1, y1]] = [start, at(event)];
  return [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
}

stage.onpointerdown = (event) => {
  if (!stage.classList.contains("draws") || event.button) return;
  stage.setPointerCapture(event.pointerId);
  start = at(event);
};
stage.onpointermove = (event) => start && show(dragged(event));
stage.onpointercancel = () => [(start = null), show()];
stage.onpointerup = (event) => {
  if (!start) return;
  const corners = dragged(event);
  start = null;
  if (corners[0] === corners[2] || corners[1] === corners[3]) return show(); // a click
  put({ boxes: [...(kind === "one" ? [] : value().boxes), ["", corners]] });
  names.lastElementChild?.querySelector("input").focus();
};
stage.onclick = () => takes_picture && !value().picture && file.click();
stage.onpaste = (event) => read([...event.clipboardData.files][0]);
stage.ondragover = (event) => event.preventDefault();
stage.ondrop = (event) => [event.preventDefault(), read(event.dataTransfer.files[0])];
file.onchange = () => [read(file.files[0]), (file.value = "")];
window.addEventListener("cm3leon-drawn", showBar);
watch("value", () => show());
show();

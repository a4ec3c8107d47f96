// The paint has one byte per image pixel: 0 is kept, 255 is regenerated. The photo is enlarged by an integer factor, so
// that pixels and patches are large enough to hit.
const $ = (name) => element.querySelector(name);
const BLUE = [102, 140, 178]; // color of the paint, the same as on contact sheets
const SIDE = 384; // CSS pixels of the longer side, approximately
const HINTS = {
  fill: "Paint over what should be redrawn; the rest stays the same, pixel for pixel.",
  change: "Paint how much may change: the brighter the brush, the more. Unpainted parts stay the same, pixel for pixel.",
  none: "",
};
let scene = { mode: "none", photo: null, number: -1 };
let layers = {}; // paint, undo history and brush of each mode
let photo = null;
let cursor = null; // keyboard cursor: (row, column) of its upper left pixel
let stroke = null; // the pointer that paints, and its last position

function layer() {
  return layers[scene.mode];
}

function addBrush(percent) {
  const button = document.createElement("button");
  const gray = Math.round((255 * percent) / 100);
  button.className = "brush";
  button.dataset.level = gray;
  button.title = `noise level ${percent} %`;
  button.textContent = percent;
  button.style.background = `rgb(${gray},${gray},${gray})`;
  button.style.color = gray > 127 ? "#222" : "#fff";
  button.addEventListener("click", () => choose(gray));
  $(".brushes").append(button);
}

function choose(level) {
  layer().level = level;
  for (const button of element.querySelectorAll(".brush, .eraser")) {
    const chosen = Number(button.dataset.level) === level;
    button.classList.toggle("chosen", chosen);
    button.setAttribute("aria-pressed", chosen);
  }
}

function factor() {
  return Math.max(1, Math.floor(SIDE / Math.max(scene.height, scene.width)));
}

// A new photo starts without paint in every mode. A mode that was not used yet starts with the other mode's paint.
function resetLayers() {
  const fresh = (level) => ({ paint: new Uint8Array(scene.height * scene.width), history: [], level, touched: false });
  layers = { fill: fresh(255), change: fresh(Math.round((255 * scene.levels[2]) / 100)), none: fresh(0) };
  const size = $(".size");
  size.max = Math.max(4, Math.ceil(Math.max(scene.height, scene.width) / 3));
  size.value = Math.max(1, Math.round(Math.max(scene.height, scene.width) / 12));
}

function load(text) {
  const next = JSON.parse(text);
  const same = next.number === scene.number && next.height === scene.height && next.width === scene.width;
  scene = next;
  stroke = cursor = null;
  if (!$(".brush")) scene.levels.forEach(addBrush);
  const bare = !scene.photo;
  element.querySelector(".painter").classList.toggle("bare", bare);
  element.querySelector(".painter").dataset.mode = bare ? "none" : scene.mode;
  $(".hint").textContent = HINTS[scene.mode];
  if (bare) return publish(new Uint8Array(0));
  if (!same) resetLayers();
  const other = layers[{ fill: "change", change: "fill" }[scene.mode]];
  if (other && !layer().touched) {
    layer().paint = scene.mode === "fill" ? other.paint.map((value) => (value ? 255 : 0)) : other.paint.slice();
  }
  choose(layer().level);
  const brushes = element.querySelectorAll(".brush");
  brushes[brushes.length - 1].textContent = scene.mode === "fill" ? "Brush" : scene.levels[brushes.length - 1];
  const image = new Image();
  image.onload = () => {
    photo = image;
    show();
    publish(layer().paint);
  };
  image.src = scene.photo;
}

// Noise levels that the sampler starts from: the maximum of the paint over each patch.
function startLevels() {
  const [ph, pw] = scene.patch;
  const [gh, gw] = [Math.floor(scene.height / ph), Math.floor(scene.width / pw)];
  const levels = new Uint8Array(gh * gw);
  for (let y = 0; y < gh * ph; y++) {
    for (let x = 0; x < gw * pw; x++) {
      const at = Math.floor(y / ph) * gw + Math.floor(x / pw);
      levels[at] = Math.max(levels[at], layer().paint[y * scene.width + x]);
    }
  }
  return [levels, gh, gw];
}

function drawGrid(context, scale) {
  const [ph, pw] = scene.patch;
  if (Math.min(ph, pw) * scale < 8) return;
  context.strokeStyle = "rgba(128,128,128,0.45)";
  context.beginPath();
  for (let y = ph; y < scene.height; y += ph) {
    context.moveTo(0, y * scale + 0.5);
    context.lineTo(scene.width * scale, y * scale + 0.5);
  }
  for (let x = pw; x < scene.width; x += pw) {
    context.moveTo(x * scale + 0.5, 0);
    context.lineTo(x * scale + 0.5, scene.height * scale);
  }
  context.stroke();
}

// Return a canvas to lay over the photo: the more a pixel may change, the more opaque it is.
function paintOverlay() {
  const overlay = document.createElement("canvas");
  overlay.width = scene.width;
  overlay.height = scene.height;
  const pixels = overlay.getContext("2d").createImageData(scene.width, scene.height);
  layer().paint.forEach((value, i) => pixels.data.set([...BLUE, value ? 38 + 0.75 * value : 0], 4 * i));
  overlay.getContext("2d").putImageData(pixels, 0, 0);
  return overlay;
}

function show() {
  if (!photo) return;
  const scale = factor();
  const canvas = $(".photo");
  canvas.width = scene.width * scale;
  canvas.height = scene.height * scale;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(photo, 0, 0, canvas.width, canvas.height);
  if (scene.mode === "none") return;
  context.drawImage(paintOverlay(), 0, 0, canvas.width, canvas.height);
  drawGrid(context, scale);
  if (cursor) {
    const [ph, pw] = $(".snap").checked ? scene.patch : [1, 1];
    context.strokeStyle = "#e07b00";
    context.lineWidth = 2;
    context.strokeRect(cursor[1] * scale, cursor[0] * scale, pw * scale, ph * scale);
  }
  const [levels, gh, gw] = startLevels();
  const map = $(".map");
  map.width = gw;
  map.height = gh;
  map.style.width = `${canvas.width / 2.4}px`;
  map.style.height = `${canvas.height / 2.4}px`;
  const pixels = map.getContext("2d").createImageData(gw, gh);
  levels.forEach((value, i) => pixels.data.set([value, value, value, 255], 4 * i));
  map.getContext("2d").putImageData(pixels, 0, 0);
}

function publish(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 4096) text += String.fromCharCode(...bytes.subarray(i, i + 4096));
  props.value = btoa(text);
  element.querySelector(".painter").dataset.paint = props.value;
}

function setPixel(x, y) {
  if (x < 0 || y < 0 || x >= scene.width || y >= scene.height) return;
  layer().paint[y * scene.width + x] = layer().level;
}

// Paint a disc around a position in image pixels, or all patches that the disc touches.
function dab(x, y) {
  const radius = Number($(".size").value) / 2;
  const [ph, pw] = $(".snap").checked ? scene.patch : [1, 1];
  const middle = [Math.floor(y), Math.floor(x)];
  for (let row = Math.floor(y - radius); row <= y + radius; row++) {
    for (let column = Math.floor(x - radius); column <= x + radius; column++) {
      const inside = (row + 0.5 - y) ** 2 + (column + 0.5 - x) ** 2 < radius ** 2;
      if (!inside && (row !== middle[0] || column !== middle[1])) continue;
      if (row < 0 || column < 0 || row >= scene.height || column >= scene.width) continue;
      const [top, left] = [Math.floor(row / ph) * ph, Math.floor(column / pw) * pw];
      for (let i = 0; i < ph; i++) for (let j = 0; j < pw; j++) setPixel(left + j, top + i);
    }
  }
}

function position(event) {
  const box = $(".photo").getBoundingClientRect();
  return [
    ((event.clientX - box.left) / box.width) * scene.width,
    ((event.clientY - box.top) / box.height) * scene.height,
  ];
}

function saveForUndo() {
  layer().touched = true;
  layer().history.push(layer().paint.slice());
  if (layer().history.length > 30) layer().history.shift();
}

function canPaint() {
  return scene.photo && scene.mode !== "none";
}

// One pointer at a time, and only its main button: context menus, second fingers and lost releases paint nothing.
$(".photo").addEventListener("pointerdown", (event) => {
  if (!canPaint() || stroke || event.button !== 0) return;
  event.preventDefault();
  $(".photo").setPointerCapture(event.pointerId);
  saveForUndo();
  stroke = { pointer: event.pointerId, at: position(event) };
  dab(...stroke.at);
  show();
});

function endStroke() {
  stroke = null;
  publish(layer().paint);
}

$(".photo").addEventListener("pointermove", (event) => {
  if (!stroke || event.pointerId !== stroke.pointer) return;
  if (!(event.buttons & 1)) return endStroke();
  const [[x0, y0], [x, y]] = [stroke.at, position(event)];
  const steps = Math.max(1, Math.ceil(2 * Math.hypot(x - x0, y - y0)));
  for (let i = 1; i <= steps; i++) dab(x0 + ((x - x0) * i) / steps, y0 + ((y - y0) * i) / steps);
  stroke.at = [x, y];
  show();
});

for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
  $(".photo").addEventListener(name, (event) => {
    if (stroke && event.pointerId === stroke.pointer) endStroke();
  });
}

// Keyboard: arrow keys move a cursor by patches, or by pixels, and the space bar paints there.
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

$(".photo").addEventListener("keydown", (event) => {
  if (!canPaint()) return;
  const [ph, pw] = $(".snap").checked ? scene.patch : [1, 1];
  if (event.key in ARROWS) {
    const [down, right] = ARROWS[event.key];
    const [y, x] = cursor ? [cursor[0] + down * ph, cursor[1] + right * pw] : [0, 0];
    cursor = [Math.max(0, Math.min(scene.height - ph, y)), Math.max(0, Math.min(scene.width - pw, x))];
    show();
  } else if (event.key === " " && cursor) {
    edit(() => (saveForUndo(), dab(cursor[1] + pw / 2, cursor[0] + ph / 2)));
  } else return;
  event.preventDefault();
});
$(".photo").addEventListener("blur", () => {
  cursor = null;
  show();
});

function edit(change) {
  if (!canPaint()) return;
  change(layer());
  show();
  publish(layer().paint);
}

$(".eraser").addEventListener("click", () => choose(0));
$(".undo").addEventListener("click", () => edit((on) => (on.paint = on.history.pop() || on.paint)));
$(".clear").addEventListener("click", () => edit((on) => (saveForUndo(), on.paint.fill(0))));
$(".all").addEventListener("click", () => edit((on) => (saveForUndo(), on.paint.fill(on.level))));

watch("scene", () => load(props.scene));
load(props.scene);

// One byte of paint per pixel of the picture: 0 stays as it is, 255 is drawn anew. What is shown is enlarged by a whole
// factor, so that pixels and patches are squares one can aim at.
const $ = (name) => element.querySelector(name);
const BLUE = [102, 140, 178]; // of paint, as on the sheets of the commands
const SIDE = 384; // CSS pixels of the longer side, about
const HINTS = {
  fill: "Paint what is to be drawn anew; the rest stays, pixel by pixel.",
  change: "Paint how much may change: the brighter the brush, the more; bare parts stay, pixel by pixel.",
  none: "",
};
let scene = { mode: "none", photo: null, number: -1 };
let papers = {}; // what is painted in each mode, its history and its brush
let photo = null;
let cursor = null; // of the keyboard, (row, column) of its upper left pixel
let stroke = null; // the pointer that paints, and where it was last

function paper() {
  return papers[scene.mode];
}

function brush(percent) {
  const button = document.createElement("button");
  const grey = Math.round((255 * percent) / 100);
  button.className = "brush";
  button.dataset.level = grey;
  button.title = `noise level ${percent} %`;
  button.textContent = percent;
  button.style.background = `rgb(${grey},${grey},${grey})`;
  button.style.color = grey > 127 ? "#222" : "#fff";
  button.addEventListener("click", () => choose(grey));
  $(".brushes").append(button);
}

function choose(grey) {
  paper().level = grey;
  for (const button of element.querySelectorAll(".brush, .eraser")) {
    const chosen = Number(button.dataset.level) === grey;
    button.classList.toggle("chosen", chosen);
    button.setAttribute("aria-pressed", chosen);
  }
}

function factor() {
  return Math.max(1, Math.floor(SIDE / Math.max(scene.height, scene.width)));
}

// A picture that is new has no paint in any mode; one that was not touched takes over what is painted in the other.
function lay() {
  const fresh = (level) => ({ paint: new Uint8Array(scene.height * scene.width), history: [], level, touched: false });
  papers = { fill: fresh(255), change: fresh(Math.round((255 * scene.levels[2]) / 100)), none: fresh(0) };
  const size = $(".size");
  size.max = Math.max(4, Math.ceil(Math.max(scene.height, scene.width) / 3));
  size.value = Math.max(1, Math.round(Math.max(scene.height, scene.width) / 12));
}

function load(text) {
  const next = JSON.parse(text);
  const same = next.number === scene.number && next.height === scene.height && next.width === scene.width;
  scene = next;
  stroke = cursor = null;
  if (!$(".brush")) scene.levels.forEach(brush);
  const bare = !scene.photo;
  element.querySelector(".painter").classList.toggle("bare", bare);
  element.querySelector(".painter").dataset.mode = bare ? "none" : scene.mode;
  $(".hint").textContent = HINTS[scene.mode];
  if (bare) return publish(new Uint8Array(0));
  if (!same) lay();
  const other = papers[{ fill: "change", change: "fill" }[scene.mode]];
  if (other && !paper().touched) {
    paper().paint = scene.mode === "fill" ? other.paint.map((value) => (value ? 255 : 0)) : other.paint.slice();
  }
  choose(paper().level);
  const brushes = element.querySelectorAll(".brush");
  brushes[brushes.length - 1].textContent = scene.mode === "fill" ? "Brush" : scene.levels[brushes.length - 1];
  const image = new Image();
  image.onload = () => {
    photo = image;
    show();
    publish(paper().paint);
  };
  image.src = scene.photo;
}

// What the sampler starts from: the highest level of each patch.
function patches() {
  const [ph, pw] = scene.patch;
  const [gh, gw] = [Math.floor(scene.height / ph), Math.floor(scene.width / pw)];
  const most = new Uint8Array(gh * gw);
  for (let y = 0; y < gh * ph; y++) {
    for (let x = 0; x < gw * pw; x++) {
      const at = Math.floor(y / ph) * gw + Math.floor(x / pw);
      most[at] = Math.max(most[at], paper().paint[y * scene.width + x]);
    }
  }
  return [most, gh, gw];
}

function grid(context, scale) {
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

// What is painted as a picture: the thicker, the more may change.
function veil() {
  const layer = document.createElement("canvas");
  layer.width = scene.width;
  layer.height = scene.height;
  const pixels = layer.getContext("2d").createImageData(scene.width, scene.height);
  paper().paint.forEach((value, i) => pixels.data.set([...BLUE, value ? 38 + 0.75 * value : 0], 4 * i));
  layer.getContext("2d").putImageData(pixels, 0, 0);
  return layer;
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
  context.drawImage(veil(), 0, 0, canvas.width, canvas.height);
  grid(context, scale);
  if (cursor) {
    const [ph, pw] = $(".whole").checked ? scene.patch : [1, 1];
    context.strokeStyle = "#e07b00";
    context.lineWidth = 2;
    context.strokeRect(cursor[1] * scale, cursor[0] * scale, pw * scale, ph * scale);
  }
  const [most, gh, gw] = patches();
  const map = $(".map");
  map.width = gw;
  map.height = gh;
  map.style.width = `${canvas.width / 2.4}px`;
  map.style.height = `${canvas.height / 2.4}px`;
  const pixels = map.getContext("2d").createImageData(gw, gh);
  most.forEach((value, i) => pixels.data.set([value, value, value, 255], 4 * i));
  map.getContext("2d").putImageData(pixels, 0, 0);
}

function publish(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 4096) text += String.fromCharCode(...bytes.subarray(i, i + 4096));
  props.value = btoa(text);
  element.querySelector(".painter").dataset.paint = props.value;
}

function put(x, y) {
  if (x < 0 || y < 0 || x >= scene.width || y >= scene.height) return;
  paper().paint[y * scene.width + x] = paper().level;
}

// A disc around a place in pixels of the picture; of whole patches all that it touches.
function dab(x, y) {
  const radius = Number($(".size").value) / 2;
  const whole = $(".whole").checked;
  const [ph, pw] = whole ? scene.patch : [1, 1];
  const middle = [Math.floor(y), Math.floor(x)];
  for (let row = Math.floor(y - radius); row <= y + radius; row++) {
    for (let column = Math.floor(x - radius); column <= x + radius; column++) {
      const inside = (row + 0.5 - y) ** 2 + (column + 0.5 - x) ** 2 < radius ** 2;
      if (!inside && (row !== middle[0] || column !== middle[1])) continue;
      if (row < 0 || column < 0 || row >= scene.height || column >= scene.width) continue;
      const [top, left] = [Math.floor(row / ph) * ph, Math.floor(column / pw) * pw];
      for (let i = 0; i < ph; i++) for (let j = 0; j < pw; j++) put(left + j, top + i);
    }
  }
}

function place(event) {
  const box = $(".photo").getBoundingClientRect();
  return [
    ((event.clientX - box.left) / box.width) * scene.width,
    ((event.clientY - box.top) / box.height) * scene.height,
  ];
}

function remember() {
  paper().touched = true;
  paper().history.push(paper().paint.slice());
  if (paper().history.length > 30) paper().history.shift();
}

function painting() {
  return scene.photo && scene.mode !== "none";
}

// One pointer at a time, the left button alone: menus, second fingers and lost releases paint nothing.
$(".photo").addEventListener("pointerdown", (event) => {
  if (!painting() || stroke || event.button !== 0) return;
  event.preventDefault();
  $(".photo").setPointerCapture(event.pointerId);
  remember();
  stroke = { pointer: event.pointerId, at: place(event) };
  dab(...stroke.at);
  show();
});

function lift() {
  stroke = null;
  publish(paper().paint);
}

$(".photo").addEventListener("pointermove", (event) => {
  if (!stroke || event.pointerId !== stroke.pointer) return;
  if (!(event.buttons & 1)) return lift();
  const [[x0, y0], [x, y]] = [stroke.at, place(event)];
  const steps = Math.max(1, Math.ceil(2 * Math.hypot(x - x0, y - y0)));
  for (let i = 1; i <= steps; i++) dab(x0 + ((x - x0) * i) / steps, y0 + ((y - y0) * i) / steps);
  stroke.at = [x, y];
  show();
});

for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
  $(".photo").addEventListener(name, (event) => {
    if (stroke && event.pointerId === stroke.pointer) lift();
  });
}

// Without a mouse: arrows move a cursor by patches, or by pixels, and the space bar paints there.
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

$(".photo").addEventListener("keydown", (event) => {
  if (!painting()) return;
  const [ph, pw] = $(".whole").checked ? scene.patch : [1, 1];
  if (event.key in ARROWS) {
    const [down, right] = ARROWS[event.key];
    const [y, x] = cursor ? [cursor[0] + down * ph, cursor[1] + right * pw] : [0, 0];
    cursor = [Math.max(0, Math.min(scene.height - ph, y)), Math.max(0, Math.min(scene.width - pw, x))];
    show();
  } else if (event.key === " " && cursor) {
    edited(() => (remember(), dab(cursor[1] + pw / 2, cursor[0] + ph / 2)));
  } else return;
  event.preventDefault();
});
$(".photo").addEventListener("blur", () => {
  cursor = null;
  show();
});

function edited(change) {
  if (!painting()) return;
  change(paper());
  show();
  publish(paper().paint);
}

$(".eraser").addEventListener("click", () => choose(0));
$(".undo").addEventListener("click", () => edited((on) => (on.paint = on.history.pop() || on.paint)));
$(".clear").addEventListener("click", () => edited((on) => (remember(), on.paint.fill(0))));
$(".all").addEventListener("click", () => edited((on) => (remember(), on.paint.fill(on.level))));

watch("scene", () => load(props.scene));
load(props.scene);

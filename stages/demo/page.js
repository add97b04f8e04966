"use strict";
const at = (name) => document.getElementById(name);
const canvas = at("boxes");
let kinds = [];
let image = null; // base64
let boxes = []; // x0, y0, x1, y1 in units of the picture
let start = null; // where the box that is being drawn begins

const chosen = () => kinds.find((kind) => kind.name === at("kind").value);

function say(text, wrong = false) {
  at("state").textContent = text;
  at("state").classList.toggle("wrong", wrong);
}

function fit() {
  const kind = chosen();
  at("words").hidden = !kind.text;
  at("wanted").textContent = kind.text;
  at("hint").hidden = !kind.boxes || image === null;
  canvas.hidden = !kind.boxes;
  draw();
}

function draw(unfinished = null) {
  const shown = canvas.getBoundingClientRect();
  canvas.width = shown.width;
  canvas.height = shown.height;
  const pen = canvas.getContext("2d");
  pen.lineWidth = 2;
  pen.font = "bold 14px system-ui";
  for (const [number, [x0, y0, x1, y1]] of [...boxes, ...(unfinished ? [unfinished] : [])].entries()) {
    pen.strokeStyle = pen.fillStyle = "#E69F00";
    pen.strokeRect(x0 * shown.width, y0 * shown.height, (x1 - x0) * shown.width, (y1 - y0) * shown.height);
    pen.fillText(String(number + 1), x0 * shown.width + 4, y0 * shown.height + 16);
  }
}

function place(event) {
  const shown = canvas.getBoundingClientRect();
  const unit = (value) => Math.min(1, Math.max(0, value));
  return [unit((event.clientX - shown.left) / shown.width), unit((event.clientY - shown.top) / shown.height)];
}

function between([ax, ay], [bx, by]) {
  return [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)];
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  start = place(event);
});
canvas.addEventListener("pointermove", (event) => {
  if (start) draw(between(start, place(event)));
});
canvas.addEventListener("pointerup", (event) => {
  if (!start) return;
  const box = between(start, place(event));
  start = null;
  if (box[2] > box[0] && box[3] > box[1]) boxes.push(box);
  draw();
});
canvas.addEventListener("pointercancel", () => { start = null; draw(); });
addEventListener("resize", () => draw());
at("clear").addEventListener("click", () => { boxes = []; draw(); });
at("kind").addEventListener("change", fit);

at("file").addEventListener("change", () => {
  const [file] = at("file").files;
  if (!file) return;
  const reader = new FileReader();
  reader.onload = () => {
    image = reader.result.slice(reader.result.indexOf(",") + 1);
    boxes = [];
    at("picture").src = reader.result;
    at("stage").hidden = false;
    fit();
    say("");
  };
  reader.onerror = () => say("the picture cannot be read", true);
  reader.readAsDataURL(file);
});
at("picture").addEventListener("load", () => draw());

at("question").addEventListener("submit", async (event) => {
  event.preventDefault();
  at("ask").disabled = true;
  at("lines").replaceChildren();
  at("answer").hidden = true;
  say("The model is at it …");
  try {
    const question = { kind: chosen().name, image, text: at("text").value, boxes };
    const told = await (await fetch("/ask", { method: "POST", body: JSON.stringify(question) })).json();
    if (told.error) {
      say(told.error, true);
    } else {
      for (const line of told.lines) {
        const item = document.createElement("li");
        item.textContent = line;
        at("lines").append(item);
      }
      at("answer").src = `data:image/png;base64,${told.picture}`;
      at("answer").hidden = false;
      say("");
    }
  } catch (error) {
    say(`no answer: ${error.message}`, true);
  } finally {
    at("ask").disabled = false;
  }
});

fetch("/about").then((answer) => answer.json()).then((about) => {
  at("name").textContent = about.name;
  kinds = about.questions;
  for (const kind of kinds) at("kind").append(new Option(kind.label, kind.name));
  fit();
});

// The page: chooses a network and an image, and shows the classes, the time and a comparison of the files.

import { Network } from "./network.js";
import { makePad } from "./pad.js";
import { cut, decode, prepare } from "./pixels.js";

const SHOWN_CLASSES = 5;
const TIMED_RUNS = 5;
const DEFAULT_SIDE = 224; // of images for files that take any size

const at = (id) => document.getElementById(id);
const say = (text) => {
  at("status").textContent = text;
};

let networks = [];
let chosen = null; // of `networks`
let opened = null; // the Network of the chosen file
let image = null; // of `decode`; `isCropped` tells that it has been resized and cropped for a network
let queue = Promise.resolve(); // one task at a time, in order
let waiting = 0; // tasks

function make(tag, text = "", attributes = {}) {
  const element = document.createElement(tag);
  if (text !== "") element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const percent = (share) => (typeof share === "number" ? `${(100 * share).toFixed(1)} %` : "");
const duration = (milliseconds) => `${milliseconds.toFixed(milliseconds < 10 ? 2 : 1)} ms`;
const count = (number) => (typeof number === "number" ? number.toLocaleString("en-US") : "");
const argmax = (values) => values.indexOf(Math.max(...values));

/** Runs a task after those before it; an error becomes the status line. */
function enqueue(task) {
  const add = (change) => {
    waiting += change;
    at("main").setAttribute("aria-busy", waiting > 0);
  };
  add(1);
  queue = queue
    .then(task)
    .catch((error) => say(`Error: ${error.message}`))
    .finally(() => add(-1));
  return queue;
}

/** Lets the browser show what has changed before it computes. */
const shown = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));

function fill(select, texts) {
  select.replaceChildren(...texts.map((text, index) => make("option", text, { value: index })));
  select.disabled = texts.length === 0;
}

function table(header, rows) {
  const head = make("thead");
  head.append(make("tr"));
  head.firstChild.append(...header.map((text) => make("th", text, { scope: "col" })));
  const body = make("tbody");
  for (const row of rows) {
    const line = make("tr");
    line.append(...row.map((text) => make("td", text)));
    body.append(line);
  }
  const result = make("table");
  result.append(head, body);
  return result;
}

/** What `prepare` needs to know about a network's input. */
function inputOf(network) {
  const [height, width] = chosen.input_shape ?? [DEFAULT_SIDE, DEFAULT_SIDE];
  return {
    height: network.input.height ?? height,
    width: network.input.width ?? width,
    channels: network.input.channels,
    resize: image?.isCropped ? null : chosen.resize,
    interpolation: chosen.interpolation,
  };
}

async function chooseNetwork(index) {
  chosen = networks[index];
  at("network").value = index;
  fill(at("file"), chosen.files.map((file) => `${file.precision}, ${megabytes(file.bytes)}`));
  const facts = [];
  if (chosen.parameters) facts.push(`${count(chosen.parameters)} parameters`);
  if (chosen.multiply_adds) facts.push(`${count(chosen.multiply_adds)} multiply-adds`);
  if (typeof chosen.top1 === "number") facts.push(`top-1 ${percent(chosen.top1)} on ${chosen.images_from}`);
  at("facts").textContent = facts.join(", ");
  at("comparison").hidden = true;
  await openFile(0);
  await showSamples();
}

async function openFile(index) {
  const file = chosen.files[index];
  await opened?.close();
  opened = null;
  clearResult();
  say(`Loading ${chosen.name} in ${file.precision}`);
  await shown();
  opened = await Network.open(file.url);
  say(`${chosen.name} in ${file.precision}, ${megabytes(opened.bytes)}, opened in ${opened.seconds.toFixed(2)} s`);
  if (image) await classify();
}

function clearResult() {
  at("classes").replaceChildren();
  at("time").textContent = "";
  at("compare").disabled = true;
}

async function showSamples() {
  const { samples } = chosen;
  at("samples-part").hidden = !samples;
  at("samples").replaceChildren();
  if (!samples) return;
  const response = await fetch(samples.url);
  if (!response.ok) throw new Error(`${samples.url}: ${response.status} ${response.statusText}`);
  const strip = await decode(await response.blob());
  for (let left = 0, number = 1; left + samples.width <= strip.width; left += samples.width, number++) {
    const sample = { ...cut(strip, left, samples.width), isCropped: true };
    const label = samples.labels[number - 1];
    const name = label === undefined ? `Sample ${number}` : `Sample ${number}: ${opened.label(label)}`;
    const button = make("button", "", { type: "button", "aria-label": name, title: name });
    const canvas = make("canvas", "", { width: sample.width, height: sample.height });
    canvas.getContext("2d").putImageData(new ImageData(sample.data, sample.width), 0, 0);
    button.append(canvas);
    button.addEventListener("click", () => enqueue(() => setImage(sample, name)));
    at("samples").append(button);
  }
}

async function setImage(pixels, name) {
  image = pixels;
  at("view-caption").textContent = name;
  at("comparison").hidden = true;
  if (opened) await classify();
}

/** Draws what the network sees. */
function showView(pixels, { height, width, channels }) {
  const seen = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let color = 0; color < 3; color++) {
      seen.data[4 * i + color] = pixels[channels * i + (channels === 3 ? color : 0)];
    }
    seen.data[4 * i + 3] = 255;
  }
  const view = at("view");
  [view.width, view.height] = [width, height];
  view.getContext("2d").putImageData(seen, 0, 0);
}

async function classify() {
  const input = inputOf(opened);
  if (input.channels !== 1 && input.channels !== 3) {
    throw new Error(`this network takes images of ${input.channels} channels`);
  }
  const began = performance.now();
  const pixels = prepare(image, input);
  const resizing = performance.now() - began;
  showView(pixels, input);
  const { probabilities, milliseconds } = await opened.run(pixels, input);
  const order = probabilities.map((_, index) => index).sort((a, b) => probabilities[b] - probabilities[a]);
  at("classes").replaceChildren(
    ...order.slice(0, SHOWN_CLASSES).map((index) => {
      const line = make("div", "", { class: "line" });
      line.append(make("span", opened.label(index)), make("span", percent(probabilities[index])));
      const bar = make("div", "", { class: "bar", "aria-hidden": "true" });
      bar.append(make("div"));
      bar.firstChild.style.width = `${100 * probabilities[index]}%`;
      const item = make("li");
      item.append(line, bar);
      return item;
    }),
  );
  at("time").textContent = `${duration(milliseconds)} for the network, ${duration(resizing)} to resize the image`;
  at("compare").disabled = false;
}

/** Runs all files of the chosen network on the image; the differences are from the first file in float32. */
async function compare() {
  const rows = [];
  let reference = null;
  at("compare").disabled = true;
  for (const file of chosen.files) {
    say(`Comparing: ${file.precision}`);
    await shown();
    const network = await Network.open(file.url);
    try {
      const input = inputOf(network);
      const pixels = prepare(image, input);
      const result = await network.run(pixels, input); // the first run is slower
      const times = [];
      for (let i = 0; i < TIMED_RUNS; i++) times.push((await network.run(pixels, input)).milliseconds);
      times.sort((a, b) => a - b);
      if (file.precision === "float32") reference = result.logits;
      const best = argmax(result.probabilities);
      rows.push([
        file.precision,
        megabytes(file.bytes),
        `${network.seconds.toFixed(2)} s`,
        duration(times[Math.floor(TIMED_RUNS / 2)]),
        typeof file.latency === "number" ? duration(file.latency) : "",
        network.label(best),
        percent(result.probabilities[best]),
        reference ? difference(result.logits, reference).toExponential(1) : "",
        percent(file.top1),
      ]);
    } finally {
      await network.close();
    }
  }
  const header = ["file", "size", "opened in", `time, median of ${TIMED_RUNS}`, "time at the export", "class"];
  header.push("probability", "logit difference", "top-1");
  at("comparison").replaceChildren(table(header, rows));
  at("comparison").hidden = false;
  at("compare").disabled = false;
  say(`Compared ${rows.length} ${rows.length === 1 ? "file" : "files"} of ${chosen.name}`);
}

/** The largest difference of the logits over the largest logit. */
function difference(logits, reference) {
  const largest = Math.max(...reference.map(Math.abs));
  return Math.max(...logits.map((value, index) => Math.abs(value - reference[index]))) / largest;
}

function showIndex() {
  const header = ["network", "parameters", "multiply-adds", "top-1", "files"];
  const rows = networks.map((network) => [
    network.name,
    count(network.parameters),
    count(network.multiply_adds),
    percent(network.top1),
    network.files.map((file) => `${file.precision} ${megabytes(file.bytes)}`).join(", "),
  ]);
  at("index").replaceChildren(table(header, rows));
  at("all").hidden = networks.length < 2;
}

const openPhoto = (blob, name) => enqueue(async () => setImage(await decode(blob), name));

function listen() {
  at("network").addEventListener("change", (event) => {
    const index = Number(event.target.value);
    enqueue(() => chooseNetwork(index));
  });
  at("file").addEventListener("change", (event) => {
    const index = Number(event.target.value);
    enqueue(() => openFile(index));
  });
  at("compare").addEventListener("click", () => enqueue(compare));
  at("photo").addEventListener("change", ({ target }) => {
    if (target.files.length) openPhoto(target.files[0], target.files[0].name);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    at("drop").classList.add("over");
  });
  document.addEventListener("dragleave", () => at("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    at("drop").classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) openPhoto(file, file.name);
  });
  document.addEventListener("paste", ({ clipboardData }) => {
    const [file] = clipboardData.files;
    if (file) openPhoto(file, "Pasted image");
  });
  const canvas = at("pad");
  const changed = () => {
    const { width, height } = canvas;
    const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
    enqueue(() => setImage({ width, height, data }, "Drawing"));
  };
  makePad({ canvas, mark: at("pen"), clear: at("clear"), paper: at("paper"), say, changed });
}

async function start() {
  const response = await fetch("networks.json");
  if (!response.ok) throw new Error(`networks.json: ${response.status} ${response.statusText}`);
  networks = await response.json();
  fill(at("network"), networks.map((network) => network.name));
  showIndex();
  await chooseNetwork(0);
}

listen();
enqueue(start);
